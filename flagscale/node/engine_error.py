"""The true error in what an engine printed: its first exception, not one of those that follow from it."""

from __future__ import annotations

import re

_MARK = re.compile(
    r"^(\(\w[\w ]* pid=\d+\) )?(?:(?:ERROR|WARNING|INFO|CRITICAL) [\d-]+ [\d:]+ \[[^\]]*\] ?)?"
)
"""What vLLM puts in front of the lines of its processes, which print at the same time."""
_DETAILS = " [type="
"""Where pydantic begins to quote the values that it has looked at."""
_TRACEBACK = "Traceback (most recent call last):"
_FOLLOWING = 3
"""Lines behind the one that names the exception, which belong to its message where they are indented."""


def first_exception(text: str) -> tuple[str, str] | None:
    """Return (what it says, its traceback), None where no exception was printed whole."""
    lines = [(found, line) for line in text.splitlines() if (found := _MARK.match(line))]  # matches always
    marked = [(found[1] or "", line[found.end() :]) for found, line in lines]
    for begin, (process, line) in enumerate(marked):
        if line.strip() == _TRACEBACK:
            return _cut([line for other, line in marked[begin + 1 :] if other == process])
    return None


def _cut(lines: list[str]) -> tuple[str, str] | None:
    """Cut the traceback that ends with the first line that is not indented, and the rest of its message."""
    for end, line in enumerate(lines):
        if line and not line.startswith((" ", "|", "+")):
            more = []
            for following in lines[end + 1 : end + 1 + _FOLLOWING]:
                if not following.startswith(" ") or not following.strip():
                    break
                more.append(following)
            said = line + (f" {more[0].strip().partition(_DETAILS)[0]}" if more else "")
            return said, "\n".join([_TRACEBACK, *lines[: end + 1], *more])
    return None
