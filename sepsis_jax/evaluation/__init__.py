"""The tables: the cohort, the world model, the safety of policies."""
