"""Format numbers, times, memory, counts and names for people."""

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


def option_of(name: str) -> str:
    """Return `lora_rank` as `--lora-rank`: an argument as an option of a command line."""
    return f"--{name.replace('_', '-')}"


def duration(seconds: float) -> str:
    """Return 63.4 as `1m03s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def seconds_text(seconds: float | None) -> str:
    """Return a time with three digits: `12.3 s`, `1.93 s`, `45.6 ms`; `-` if it is not known."""
    if seconds is None:
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            digits = 0 if seconds >= 100 * size else 1 if seconds >= 10 * size else 2
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds * 1e6:.3g} us" if seconds else "0 s"


def bytes_text(nbytes: float | None) -> str:
    """Return an amount of memory: `61.2 GiB`, `3.12 GiB`, `131 MiB`; `-` if it is not known."""
    if nbytes is None:
        return "-"
    if nbytes < 2**30:
        return f"{nbytes / 2**20:.0f} MiB"
    return f"{nbytes / 2**30:.{1 if nbytes >= 10 * 2**30 else 2}f} GiB"


def count(number: int, noun: str) -> str:
    """Return `1 host`, `2 hosts`, `2 processes`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}{'es' if noun.endswith('s') else 's'}"
