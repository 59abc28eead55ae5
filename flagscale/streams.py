"""The output streams of a command: a reader that has seen enough, as in `... | head`, is not an error."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import TextIO


def quietly(main: Callable[[], int]) -> int:
    """Return what `main` returns; 0, without a message, if it ends because nobody reads its output any more.

    A stream that is closed from the start (`2>&-`) is discarded.
    """
    _open_closed_streams()
    _accept_any_text()
    try:
        code = main()
    except BrokenPipeError:
        if not discard_unread():
            raise  # another pipe or connection
        return 0
    except SystemExit:
        discard_unread()
        raise
    discard_unread()
    return code


def discard_unread() -> bool:
    """Flush both streams; discard the output of each one whose reader has gone, and return whether one has.

    Python would report them again when it flushes at exit.
    """
    gone = []
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            gone.append(stream)
    gone += [stream for stream in (sys.stdout, sys.stderr) if stream not in gone and _has_no_reader(stream)]
    for stream in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return bool(gone)


def _has_no_reader(stream: TextIO) -> bool:
    try:
        number = stream.fileno()
    except (OSError, ValueError):  # it is not a file: a test has replaced it
        return False
    poll = select.poll()
    poll.register(number, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _open_closed_streams() -> None:
    """Connect closed streams to nothing: otherwise the next file that is opened would take their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _accept_any_text() -> None:
    """Have file names that are not UTF-8 printed as they are, and characters unknown to a terminal escaped."""
    stream = sys.stdout
    if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
        stream.reconfigure(
            errors="surrogateescape" if stream.encoding.lower() == "utf-8" else "backslashreplace"
        )
