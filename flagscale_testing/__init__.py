"""Helpers for tests and benchmarks, for other projects too: SSH hosts, ranks, jobs without an engine."""
