"""The agent: a patient as a dialogue of proposals, simulations and prescriptions, its transcripts and its report."""
