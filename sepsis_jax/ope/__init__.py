"""Off-policy evaluation: what a policy would have been worth, from what clinicians did."""
