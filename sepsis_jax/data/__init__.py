"""Episodes and the ways to them: raw MIMIC-IV tables, canonical event tables, released files; scaling and splits."""
