"""Measure the seconds of single operations on all ranks of a host at once: `tools/profile_chip.py`."""
