"""Atomic file writes, and locks that the kernel releases when their holder ends."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import os
import resource
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_FILES_EACH, _OTHER_FILES = 8, 256
_WRITERS = 16


def write_atomic(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write `content` to a temporary file beside `path`, then rename it with `put_in_place`.

    File names that are not UTF-8 (Python holds them as surrogates) are written as they were.
    """
    if isinstance(content, str):
        content = content.encode(errors="surrogateescape")
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without `tempfile`, whose imports would slow down every process of a start.
    temporary = path.parent / f".writing.{os.urandom(8).hex()}"
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(handle, mode)
            file.write(content)
        put_in_place(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write_all(files: Iterable[tuple[Path, str, int]]) -> None:
    """Write many files, each with its content and mode, as `write_atomic`; several at a time.

    Each waits for the disk, or for a file server; all of these waits would add up. Raises the first OSError.
    """
    from concurrent.futures import ThreadPoolExecutor  # here, because hosts write single files

    with ThreadPoolExecutor(_WRITERS) as writers:
        list(writers.map(lambda file: write_atomic(*file), files))


def user_path(text: str) -> Path:
    """Return the path that a user has named; a `~` whose home directory is unknown stays as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def name_violation(text: str) -> str:
    """Return why a text cannot be the path of a file; "" if it can."""
    if user_path(text).parts[:1] == Path(text).parts[:1] and text.startswith("~"):
        return "no home directory is known for this `~`; write the path in full"
    try:
        return "no path contains the character NUL" if b"\0" in os.fsencode(text) else ""
    except UnicodeEncodeError:
        return "no path contains half of a surrogate pair"


def read_regular(path: Path) -> bytes:
    """Return the content of a file that a user has named.

    Raises:
        OSError: it cannot be read, or is a pipe or a device, from which a command might read forever.
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
        with os.fdopen(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def read_regular_text(path: Path, encoding: str = "utf-8") -> str:
    """Return the text of a file that a user has named, with `\\n` at the end of its lines.

    Raises:
        OSError: as `read_regular`.
        UnicodeDecodeError: the text has another encoding.
    """
    return io.TextIOWrapper(io.BytesIO(read_regular(path)), encoding=encoding).read()


def cache_file(kind: str, key: str) -> Path:
    """Return the file of the user's cache that holds what was found out about `key`; `kind` is its folder."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (
        cache
        / "flagscale"
        / kind
        / f"{hashlib.sha256(key.encode(errors='surrogateescape')).hexdigest()[:32]}.json"
    )


def put_in_place(temporary: Path, path: Path) -> None:
    """Flush a finished file to disk, then rename it to `path`: a crash leaves the old file or the new one."""
    handle = os.open(temporary, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(temporary, path)


def room_for_files(connections: int) -> None:
    """Raise the limit of open files (often 1024) for this many connections, as far as the host allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OTHER_FILES + _FILES_EACH * connections
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


@contextmanager
def locked(path: Path, *, busy: Exception | None = None) -> Iterator[None]:
    """Hold the lock of a folder or of a file; a missing file is created.

    The kernel releases the lock when its process ends, so none is left behind.

    Args:
        busy: raised if another process holds the lock; default: wait for that process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    handle = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        if busy is None:
            fcntl.flock(handle, fcntl.LOCK_EX)
        else:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
        yield
    finally:
        os.close(handle)


def not_a_folder(path: Path) -> Path | None:
    """Return the nearest part of a path that exists, if it is no folder, so that none can be made there."""
    existing = next(one for one in (path, *path.parents) if os.path.lexists(one))
    return None if os.path.isdir(existing) else existing
