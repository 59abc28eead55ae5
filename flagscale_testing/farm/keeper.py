"""The keeper of a farm: the parent of every process in it, and the one that ends them all.

It adopts orphans, so whatever a process does to its session, its environment or its parent, it still descends
from the keeper. The farm ends when the owner closes the keeper's stdin, which the kernel also does for an
owner that was killed: both ways are the same code. This file is the owner's side (`Keeper`) and, run as a
program, the keeper itself.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_END_WAIT = 30.0
_POLL = 0.02


class Keeper:
    """Starts processes that live no longer than this object, nor than the process that holds it."""

    def __init__(self) -> None:
        # A session of its own: a Ctrl-C or a kill of the test's process group must not reach it.
        self._program = subprocess.Popen(
            [sys.executable, "-I", __file__],
            cwd="/",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._one_request = threading.Lock()

    @property
    def pid(self) -> int:
        return self._program.pid

    def start(self, words: Sequence[str], log: Path) -> psutil.Process:
        """Start a program without stdin, its output appended to `log`.

        Raises:
            RuntimeError: it ended at once; the message holds its log.
        """
        assert self._program.stdin
        assert self._program.stdout
        with self._one_request:
            print(json.dumps([str(log), *words]), file=self._program.stdin, flush=True)
            pid = self._program.stdout.readline()
        if not pid:
            raise RuntimeError("the keeper of the farm is gone")
        try:
            return psutil.Process(int(pid))
        except psutil.NoSuchProcess:
            raise RuntimeError(f"{words[0]} ended at once:\n{log.read_text()}") from None

    def processes(self) -> list[psutil.Process]:
        """Return everything that lives in the farm."""
        return psutil.Process(self.pid).children(recursive=True)

    def close(self) -> None:
        """End every process of the farm, and wait until they are gone."""
        assert self._program.stdin
        assert self._program.stdout
        self._program.stdin.close()
        code = self._program.wait(_END_WAIT)
        self._program.stdout.close()
        if code:
            raise RuntimeError(f"the keeper of the farm failed with exit code {code}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _spawn(log: str, *words: str) -> int:
    """Start a program that the kernel kills should the keeper itself be killed; return its pid."""
    return os.posix_spawnp(
        "setpriv",
        ["setpriv", "--pdeathsig", "KILL", "--", *words],
        os.environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores them, which a child would inherit
    )


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _end_descendants() -> None:
    own = psutil.Process()
    while descendants := own.children(recursive=True):
        for process in descendants:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        time.sleep(_POLL)


def main() -> None:
    """Start what each line of stdin says (JSON: log file and words), print its pid; at the end, end all."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which every child would inherit
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    try:
        for line in sys.stdin:
            print(_spawn(*json.loads(line)), flush=True)
    finally:
        _end_descendants()


if __name__ == "__main__":
    main()
