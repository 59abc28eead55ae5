"""The state of a run on one host: a small JSON file that only this host's supervisor writes, atomically."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from flagscale.files import write_atomic

Phase = Literal["starting", "running", "stopping", "finished", "failed", "stopped"]
ENDED: tuple[Phase, ...] = ("finished", "failed", "stopped")

CLOCK_TOLERANCE = 2.0
"""Seconds by which a process's create time may seem to move when the system clock is corrected."""


@dataclass(frozen=True)
class ProcessId:
    """A process that a recycled pid cannot be mistaken for."""

    pid: int
    create_time: float

    @staticmethod
    def of(pid: int) -> ProcessId:
        return ProcessId(pid, psutil.Process(pid).create_time())

    def process(self) -> psutil.Process | None:
        """Return the living process, or None if it is gone (or a zombie, or another one has its pid now)."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.create_time) < CLOCK_TOLERANCE
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


@dataclass(frozen=True)
class Failure:
    """What ended a run on a host: the first failing rank where one is known, and why."""

    message: str
    rank: int | None = None
    pid: int | None = None
    exitcode: int | None = None
    signal: str | None = None
    traceback: str = ""
    time: float = 0.0


@dataclass(frozen=True)
class HostState:
    """What the supervisor of a host knows. Times are seconds since the epoch on that host."""

    run_id: str
    phase: Phase
    supervisor: ProcessId | None = None
    engine: ProcessId | None = None
    started: float = 0.0
    ended: float | None = None
    exit_code: int | None = None
    failure: Failure | None = None

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(asdict(self), indent=1) + "\n")

    def changed(self, **values: Any) -> HostState:
        return replace(self, **values)


def from_dict(raw: dict[str, Any]) -> HostState:
    """Build a state from its JSON form; ValueError where it is none."""
    try:
        processes = {name: ProcessId(**raw[name]) if raw.get(name) else None for name in ("supervisor", "engine")}
        failure = Failure(**raw["failure"]) if raw.get("failure") else None
        return HostState(**{**raw, **processes, "failure": failure})
    except (TypeError, KeyError) as error:
        raise ValueError(f"not a host state: {error}") from None


def read_state(path: Path, run_id: str) -> HostState | None:
    """Return the state of this very run; None where there is none yet (or only an earlier run's)."""
    try:
        state = from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    return state if state.run_id == run_id else None
