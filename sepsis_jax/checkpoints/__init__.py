"""Models that come with the package: of simulated patients, trained on the embedded cohort of configs/embedded.yaml.

`make checkpoints` makes the world models anew, `make curriculum` the language model.
"""

from __future__ import annotations

from pathlib import Path

CARRY = Path(__file__).parent / "carry"
"""Folder of the `carry` ensemble."""

PUBLISHED = Path(__file__).parent / "published"
"""Folder of the `published` architecture, trained on the same stays."""

TINY_AGENT = Path(__file__).parent / "tiny_agent"
"""Folder of a language model of 2.5 million weights that calls the agent's tools, see docs/curriculum.md."""
