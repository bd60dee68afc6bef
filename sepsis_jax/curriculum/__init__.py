"""The curriculum: a language model learns what patients do, imitates, and then improves inside the world model."""
