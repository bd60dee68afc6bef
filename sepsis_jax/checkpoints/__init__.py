"""World models that come with the package, trained on the embedded cohort of configs/embedded.yaml.

`make checkpoints` makes them anew. They are models of simulated patients.
"""

from __future__ import annotations

from pathlib import Path

CARRY = Path(__file__).parent / "carry"
"""Folder of the `carry` ensemble."""

PUBLISHED = Path(__file__).parent / "published"
"""Folder of the `published` architecture, trained on the same stays."""
