"""Losses, resuming and the direction of learning, where PyTorch and TRL are."""

from __future__ import annotations

import pytest
from processes import ROOT
from training_here import finish, install_training, start

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


def test_checks_inside_the_training_environment():
    install_training()
    assert "all well" in finish(start(str(ROOT / "tests" / "curriculum" / "inside.py")))
