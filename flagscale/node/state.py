"""The state of a run on one host: a small JSON file that is written atomically, by one process at a time.

The host's `start` command writes the first state, its supervisor all others; where the supervisor was killed,
its guard or `stop` writes the last one.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flagscale.errors import FlagScaleError
from flagscale.files import write_atomic
from flagscale.node.linux import birth, boot

if TYPE_CHECKING:
    import psutil

Phase = Literal["starting", "running", "stopping", "finished", "failed", "stopped"]
Reply = dict[str, Any]
"""What a node command answers: plain JSON values."""
ENDED: tuple[Phase, ...] = ("finished", "failed", "stopped")


@dataclass(frozen=True)
class ProcessId:
    """A process that neither a recycled pid nor a restart of the host can be mistaken for."""

    pid: int
    birth: str

    @staticmethod
    def of(pid: int) -> ProcessId:
        return ProcessId(pid, birth(pid))

    def process(self) -> psutil.Process | None:
        """Return the living process, or None if it is gone (or a zombie, or another one has its pid now)."""
        from flagscale.node.processes import find  # with psutil, which a start does without

        process = find(self.pid)
        with suppress(ProcessLookupError):
            return process if process and birth(self.pid) == self.birth else None
        return None

    def of_this_boot(self) -> bool:
        return self.birth.startswith(f"{boot()}:")


@dataclass(frozen=True)
class Failure:
    """What ended a run on a host: the first failing rank where one is known, and why."""

    message: str
    rank: int | None = None
    local_rank: int | None = None
    pid: int | None = None
    exitcode: int | None = None
    signal: str | None = None
    traceback: str = ""
    """Of the rank; where no rank is known, the last lines that the launcher printed."""
    log: str = ""
    """The file, on that host, with what the rank itself printed."""
    time: float = 0.0
    is_victim: bool = False
    """Whether something that happened elsewhere is the cause."""


@dataclass(frozen=True)
class Attempt:
    """One of the times that a run was started on its hosts, after it has failed."""

    number: int
    started: float
    ended: float
    failure: Failure


@dataclass(frozen=True)
class HostState:
    """What is known of a run on a host. Times are seconds since the epoch on that host."""

    run_id: str
    phase: Phase
    supervisor: ProcessId | None = None
    guard: ProcessId | None = None
    engine: ProcessId | None = None
    started: float = 0.0
    ended: float | None = None
    exit_code: int | None = None
    failure: Failure | None = None
    members: tuple[int, ...] = ()
    """The ranks of the hosts that take part in the present attempt; empty: all."""
    is_tidied: bool = False
    """Whether a stop has run `after_stop` since."""
    attempts: tuple[Attempt, ...] = ()
    """The failed attempts before the present one."""

    @property
    def group(self) -> int | None:
        """The process group of the supervisor while that lives: only then it is surely not another's."""
        return self.supervisor.pid if self.supervisor and self.supervisor.process() else None

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(asdict(self), indent=1) + "\n")

    def changed(self, **values: Any) -> HostState:
        return replace(self, **values)


def from_dict(raw: dict[str, Any]) -> HostState:
    """Build a state from its JSON form; ValueError where it is none."""
    try:
        names = ("supervisor", "guard", "engine")
        processes = {name: ProcessId(**raw[name]) if raw.get(name) else None for name in names}
        failure = Failure(**raw["failure"]) if raw.get("failure") else None
        members = tuple(raw.get("members", ()))
        attempts = tuple(
            Attempt(**{**attempt, "failure": Failure(**attempt["failure"])})
            for attempt in raw.get("attempts", ())
        )
        return HostState(**{**raw, **processes, "failure": failure, "attempts": attempts, "members": members})
    except (TypeError, AttributeError) as error:
        raise ValueError(f"not a host state: {error}") from None


def read_state(path: Path, run_id: str | None = None) -> HostState | None:
    """Return the state of this very run (default: of any); None where there is none yet.

    Raises:
        FlagScaleError: there is one, but it cannot be read.
    """
    try:
        state = from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FlagScaleError(f"{path} cannot be read: {error}") from None
    return state if run_id in (None, state.run_id) else None
