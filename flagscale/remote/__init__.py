"""Reach hosts through transports: check them, and start, query and stop jobs on all of them."""
