"""Policies learned from recorded decisions alone, without any model of patients."""
