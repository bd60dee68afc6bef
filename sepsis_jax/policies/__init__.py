"""Policies: the estimate of what clinicians do, simple rules, and the planner that simulates before it chooses."""
