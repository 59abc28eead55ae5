"""Parallel arithmetic: pure functions, shared by the launcher and the workers."""
