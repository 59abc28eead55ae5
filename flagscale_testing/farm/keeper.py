"""The keeper of a farm: the parent process of everything in the farm, which ends it all.

It adopts orphans, so a process still descends from the keeper whatever it does to its session, environment or
parent. The farm ends when the owner closes the keeper's stdin; the kernel closes it for an owner that was
killed, so both cases use the same code. This module is the owner's side (`Keeper`) and, run as a script, the
keeper itself.
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
    """Starts processes that live no longer than this object and the process that owns it."""

    def __init__(self) -> None:
        # A separate session, so that Ctrl-C or a kill of the test's process group does not reach it.
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
        """Start a program without stdin and append its output to `log`.

        Raises:
            RuntimeError: it ended at once; the message includes its log.
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
        """Return all processes of the farm."""
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
    """Start a program that the kernel kills if the keeper itself is killed; return its pid."""
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
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],  # Python ignores these, and children would inherit that
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
    """Start a program per line of stdin (JSON: log file and words) and print its pid; at the end, end all."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which all children would inherit
    signal.signal(signal.SIGCHLD, lambda *_: _reap())
    try:
        for line in sys.stdin:
            print(_spawn(*json.loads(line)), flush=True)
    finally:
        _end_descendants()


if __name__ == "__main__":
    main()
