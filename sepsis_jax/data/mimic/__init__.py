"""MIMIC-IV: raw tables as downloaded -> canonical event tables of the sepsis stays, in DuckDB, out of core."""

from sepsis_jax.data.mimic.extract import Extraction, MimicSettings, extract

__all__ = ["Extraction", "MimicSettings", "extract"]
