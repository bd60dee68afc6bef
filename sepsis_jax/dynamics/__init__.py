"""What happens next to a patient: the `Dynamics` protocol, the mechanistic simulator and the learned world model."""
