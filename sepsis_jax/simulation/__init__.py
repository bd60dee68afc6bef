"""Batched simulation of treatments with any `Dynamics`."""
