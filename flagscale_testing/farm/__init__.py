"""Hosts that each run a real sshd, on loopback addresses or in network namespaces."""
