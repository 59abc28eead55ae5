"""Hosts with a real sshd each, on loopback addresses or in network namespaces."""
