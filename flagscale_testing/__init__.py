"""What tests and benchmarks share, for other projects too: SSH hosts, ranks, jobs without an engine."""
