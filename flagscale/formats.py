"""Format numbers, durations and counts for people."""

from __future__ import annotations


def quantity(number: float) -> str:
    """Return 3120.0 as `3.12k`: at most three significant digits, with a decimal prefix up to T."""
    for prefix in ("", "k", "M", "G"):
        if abs(number) < 999.5:
            return f"{number:.3g}{prefix}"
        number /= 1000
    return f"{number:.3g}T"


def key_text(key: str) -> str:
    """Return `validation_loss/web` as `validation loss web`: a figure of the metrics, and its data set."""
    kind, _, name = key.partition("/")
    return f"{kind.replace('_', ' ')} {name}".rstrip()


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
