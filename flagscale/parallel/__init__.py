"""Parallel arithmetic: pure functions, shared by the launcher, the workers and the planner."""
