"""The output of a service: kept in a log, passed on, and searched for the reason of the service's end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import IO

from flagscale.errors import UserError
from flagscale.run.failure import first_exception, mistakes
from flagscale.run.logs import read_piece

_SHOWN_LINES = 20
_SHOWN_BYTES = 64 << 10
_SEARCHED = 4 << 20
"""Bytes of a log that are searched for its first exception."""


class ServiceLog:
    """The log of one process of a service."""

    def __init__(self, path: Path, name: str, restarts: int) -> None:
        """Begin the log, or go on with it after a restart."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if restarts:
            with suppress(OSError), path.open("ab") as log:  # a full disk does not prevent a restart
                log.write(f"=== restart {restarts} of {name}\n".encode())
        else:
            path.write_bytes(b"")
        self._searched_from = path.stat().st_size
        self._reader: Thread | None = None

    def read(self, output: IO[bytes], prefix: str, on_line: Callable[[str], None]) -> None:
        """Read a service's output in a thread until it ends: a full pipe would block the service.

        Args:
            prefix: precedes each line that is passed on.
            on_line: is called with every line that is not empty.
        """
        self._reader = Thread(target=self._pass_on, args=(output, prefix.encode(), on_line), daemon=True)
        self._reader.start()

    def wait_for_end(self, seconds: float) -> None:
        """Wait until all output has been read, but no longer than this."""
        if self._reader:
            self._reader.join(seconds)

    def ignore_errors_so_far(self) -> None:
        """Search only later output for the reason of the service's end."""
        self._searched_from = self.path.stat().st_size

    def cause(self, code: int) -> tuple[str, str] | None:
        """Return (why the service ended with this exit code, more about it) if its output says so."""
        if code == UserError.exit_code:
            size = read_piece(self.path, 0, 0)[1]
            said = mistakes(self._text(max(self._searched_from, size - _SEARCHED), _SEARCHED))
            if said:
                return said[0], "\n".join(said[1:])
        return first_exception(self._text(self._searched_from, _SEARCHED))

    def last_lines(self) -> str:
        """Return the end of the log."""
        return "\n".join(self._text(-_SHOWN_BYTES, _SHOWN_BYTES).splitlines()[-_SHOWN_LINES:])

    def _text(self, position: int, size: int) -> str:
        return read_piece(self.path, position, size)[0].decode(errors="replace")

    def _pass_on(self, output: IO[bytes], prefix: bytes, on_line: Callable[[str], None]) -> None:
        is_full = False
        with self.path.open("ab", buffering=0) as log:
            for line in output:
                try:
                    _write(log, line)
                    _write(sys.stdout.buffer, prefix + line)
                    is_full = False
                except OSError as error:
                    if not is_full:
                        print(f"flagscale: output of services is lost: {error}", file=sys.stderr)
                    is_full = True
                if shown := line.decode(errors="replace").strip():
                    on_line(shown)


def _write(file: IO[bytes], line: bytes) -> None:
    file.write(line)
    file.flush()
