"""The state of a run on one host: a small JSON file that is written atomically, by one process at a time.

The host's `start` command writes the first state, its supervisor all others; where the supervisor was killed,
its guard or `stop` writes the last one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from flagscale.errors import FlagScaleError
from flagscale.files import write_atomic
from flagscale.linux import birth, boot
from flagscale.run.failure import Failure

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

    @property
    def is_of_this_boot(self) -> bool:
        return self.birth.startswith(f"{boot()}:")


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


ServicePhase = Literal["starting", "ready", "unhealthy", "running", "finished", "failed", "stopped"]
"""`ready` and `unhealthy` are a server's, `finished` is that of a service that has an end."""
OVER: tuple[ServicePhase, ...] = ("finished", "failed", "stopped")


@dataclass(frozen=True)
class ServiceState:
    """One service as its launcher sees it. Times are seconds since the epoch on that host."""

    name: str
    phase: ServicePhase
    url: str = ""
    model: str = ""
    pid: int = 0
    since: float = 0.0
    """When the phase began."""
    requests_running: int | None = None
    requests_waiting: int | None = None
    tokens_per_s: float | None = None
    """Generated, at the last look."""
    prompt_tokens_per_s: float | None = None
    done: int | None = None
    total: int | None = None
    """How much of what a service with an end has to do."""
    last_line: str = ""
    """What it printed last, while it starts."""


def to_json(run_id: str, states: Iterable[ServiceState]) -> str:
    return json.dumps({"run_id": run_id, "services": [asdict(state) for state in states]}) + "\n"


def from_json(text: bytes, run_id: str) -> tuple[ServiceState, ...]:
    """Return the states that this very run wrote; none where the text is another run's, or none yet."""
    try:
        raw = json.loads(text)
        return tuple(ServiceState(**state) for state in raw["services"]) if raw["run_id"] == run_id else ()
    except (ValueError, TypeError, KeyError):
        return ()
