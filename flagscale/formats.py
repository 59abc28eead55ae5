"""Numbers, durations and counts as people read them."""

from __future__ import annotations


def quantity(number: float) -> str:
    """Return 3120.0 as `3.12k`: three significant digits at most, with a decimal prefix up to T."""
    for prefix in ("", "k", "M", "G"):
        if abs(number) < 999.5:
            return f"{number:.3g}{prefix}"
        number /= 1000
    return f"{number:.3g}T"


def duration(seconds: float) -> str:
    """Return 63.4 as `1m03s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def count(number: int, noun: str) -> str:
    """Return `1 host`, `2 hosts`, `2 processes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"
