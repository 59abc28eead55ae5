"""The output streams of a command: a reader that has seen enough, as in `... | head`, is not an error."""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress
from io import TextIOWrapper
from typing import TextIO


def quietly(main: Callable[[], int]) -> int:
    """Return what `main` returns; 0, without a message, if it ends because nobody reads its output any more.

    A stream that is closed from the start (`2>&-`) is discarded. Output that cannot be written, as on a full
    disk, is a failure: 1, with a message.
    """
    _open_closed_streams()
    _accept_any_text()
    try:
        code = main()
        sys.stdout.flush()
    except BrokenPipeError:
        if not discard_unread():
            raise  # another pipe or connection
        return 0
    except OSError as error:
        if not report_full_disk(error):
            raise
        return 1
    except SystemExit:
        discard_unread()
        raise
    discard_unread()
    return code


def report_full_disk(error: OSError) -> bool:
    """Report a file or standard output that cannot be written for lack of space; False for other errors."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return False
    with suppress(OSError):  # a stream that is no file, or standard error on the same disk
        _discard(sys.stdout)
        print(f"error: cannot write {error.filename or 'the output'}: {error.strerror}", file=sys.stderr)
    return True


def discard_unread() -> bool:
    """Flush both streams; discard those whose reader has gone, and return whether there are any."""
    gone = []
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:
            gone.append(stream)
    gone += [stream for stream in (sys.stdout, sys.stderr) if stream not in gone and _has_no_reader(stream)]
    for stream in gone:
        _discard(stream)
    return bool(gone)


def _discard(stream: TextIO) -> None:
    """Connect a stream to nothing: Python would report the error again when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


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
    """Print file names that are not UTF-8 as they are, and escape what the terminal cannot show."""
    stream = sys.stdout
    if isinstance(stream, TextIOWrapper) and stream.errors == "strict":
        is_utf8 = stream.encoding.lower() == "utf-8"
        stream.reconfigure(errors="surrogateescape" if is_utf8 else "backslashreplace")
