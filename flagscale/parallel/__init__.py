"""Parallel arithmetic: pure functions of degrees and ranks, shared by the launcher, the workers and the planner."""
