"""How a program of an engine ends at a user's mistake: lines that the launcher finds, and exit code 2."""

from __future__ import annotations

from flagscale.run.failure import MISTAKE


def refused(text: str) -> int:
    """Print each line as a mistake, and return the exit code."""
    print("\n".join(f"{MISTAKE}{line}" for line in text.splitlines()), flush=True)
    return 2
