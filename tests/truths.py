"""External truth that tests compare with, where its package is installed."""

from __future__ import annotations

import pytest

from sepsis_jax.errors import InputError
from sepsis_jax.ope import icu_sepsis


def icu_mdp() -> icu_sepsis.Mdp:
    """ICU-Sepsis; skips the test where the package is missing."""
    try:
        return icu_sepsis.load()
    except InputError as error:
        pytest.skip(str(error))
