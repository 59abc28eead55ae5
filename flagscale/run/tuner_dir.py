"""The folder of a tuner, `auto_tuner` in the run directory: the only owner of every path below it."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from flagscale.errors import FlagScaleError
from flagscale.files import locked, write_atomic
from flagscale.frozen import dataclass
from flagscale.run.rundir import RunDir

_BRIEFLY = 0.5
"""Seconds."""


@dataclass(frozen=True)
class TunerDir:
    """Names every file of a tuner; creating a `TunerDir` does not touch the disk."""

    path: Path

    @staticmethod
    def of(exp_dir: Path) -> TunerDir:
        return TunerDir(exp_dir / "auto_tuner")

    def trial(self, number: int) -> RunDir:
        """The run directory of one trial."""
        return RunDir(self.path / f"task_{number}")

    @property
    def history(self) -> Path:
        """One JSON object per trial, for the tuner."""
        return self.path / "history.jsonl"

    @property
    def table(self) -> Path:
        """The same for people, fastest first."""
        return self.path / "history.csv"

    @property
    def report(self) -> Path:
        return self.path / "report.md"

    @property
    def picture(self) -> Path:
        return self.path / "report.svg"

    @property
    def best(self) -> Path:
        """The configuration of the winner, complete."""
        return self.path / "best.yaml"

    @property
    def task_file(self) -> Path:
        """The task group of the winner, if its meshes were chosen for hosts of several types."""
        return self.path / "best_task.yaml"

    @property
    def state(self) -> Path:
        """What the newest tuner does, or did when it ended."""
        return self.path / "tuner.json"

    @property
    def stop_request(self) -> Path:
        """Asks the tuner that holds the folder to stop."""
        return self.path / "stop"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder against a second tuner. Raises FlagScaleError if another tuner holds it."""
        busy = FlagScaleError(
            f"another tuner is running in {self.path}; watch it with action=query, end it with action=stop"
        )
        with ExitStack() as stack:
            deadline = time.monotonic() + _BRIEFLY
            while True:
                try:
                    stack.enter_context(locked(self.path / ".lock", busy=busy))
                    break
                except OSError as error:
                    raise FlagScaleError(f"cannot write to {self.path}: {error.strerror}") from None
                except FlagScaleError:  # `is_held` of another command holds the lock for a moment
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(_BRIEFLY / 10)
            yield

    def is_held(self) -> bool:
        """Return whether a tuner is running here."""
        if not (self.path / ".lock").exists():
            return False
        try:
            with locked(self.path / ".lock", busy=BlockingIOError()):
                return False
        except BlockingIOError:
            return True
        except OSError:
            return (
                False  # it cannot be opened, for lack of permission: the plans of trials are still readable
            )

    def read_state(self) -> dict[str, Any]:
        """Return what the newest tuner wrote; empty if none did, or if it cannot be read."""
        try:
            found = json.loads(self.state.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def write_state(self, state: Mapping[str, Any]) -> None:
        self.write(self.state, json.dumps(state, indent=1) + "\n")

    def write(self, file: Path, text: str) -> None:
        """Write a file of the folder. Raises FlagScaleError if that is not possible."""
        with self._writing():
            write_atomic(file, text)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FlagScaleError(f"cannot write to {self.path}: {error.strerror}") from None

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add a line to the history with a single write, after the remains of one that was cut off.

        Raises FlagScaleError if that is not possible.
        """
        with self._writing():
            self._append(entry)

    def _append(self, entry: Mapping[str, Any]) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        file = os.open(self.history, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            size = os.fstat(file).st_size
            cut = size > 0 and os.pread(file, 1, size - 1) != b"\n"
            line = (b"\n" if cut else b"") + json.dumps(entry).encode() + b"\n"
            if os.write(file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(file)
        finally:
            os.close(file)

    def entries(self) -> list[dict[str, Any]]:
        """Return the trials of the history, oldest first; lines that are cut off are left out."""
        try:
            lines = self.history.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                found.append(entry)
        return found

    def next_number(self) -> int:
        """Return a number that no trial has had."""
        named = (path.name.partition("_")[2] for path in self.path.glob("task_*"))
        used = [int(name) for name in named if name.isdigit()]
        used += [entry["number"] for entry in self.entries() if type(entry.get("number")) is int]
        return max(used, default=0) + 1
