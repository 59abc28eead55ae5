"""Files that are either complete or not there, and locks that die with their holder."""

from __future__ import annotations

import fcntl
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FILES_EACH, _OTHER_FILES = 4, 256


def write_atomic(path: Path, text: str, mode: int = 0o644) -> None:
    """Write `text` under a temporary name beside `path`, flush it to disk, and rename it to `path`.

    Names of the file system that are no UTF-8 (Python holds them as surrogates) are written as they were.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # By hand, because every process of a start pays for the imports of `tempfile`.
    temporary = path.parent / f".writing.{os.urandom(8).hex()}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def room_for_files(connections: int) -> None:
    """Let this process have so many connections open, as far as the host lets it: often 1024 are a start."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OTHER_FILES + _FILES_EACH * connections
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock that a file stands for; the kernel drops it with its process, so none is left behind.

    Raises:
        BlockingIOError: another process holds it and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)
