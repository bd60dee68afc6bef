"""Learned world models: networks, training and checkpoints behind the `Dynamics` protocol."""
