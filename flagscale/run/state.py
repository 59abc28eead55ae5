"""The state of a run on one host: a small JSON file that is written atomically, by one process at a time.

The host's `start` command writes the first state, its supervisor all others; if the supervisor was killed,
its guard or `stop` writes the last one. The states of a host's services have a file of their own, which its
agent writes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from flagscale.errors import FlagScaleError
from flagscale.files import write_atomic
from flagscale.frozen import asdict, dataclass, replace
from flagscale.linux import birth, boot
from flagscale.run.failure import Failure

Phase = Literal["starting", "running", "stopping", "finished", "failed", "stopped"]
Reply = dict[str, Any]
"""The reply of a node command: plain JSON values."""
ENDED: tuple[Phase, ...] = ("finished", "failed", "stopped")
ServicePhase = Literal[
    "starting", "ready", "unhealthy", "restarting", "running", "finished", "failed", "stopped"
]
"""Only servers are `ready`, `unhealthy` or `restarting` (from an end until they answer again); only services
that run to an end are `finished`."""
OVER: tuple[ServicePhase, ...] = ("finished", "failed", "stopped")


@dataclass(frozen=True)
class ProcessId:
    """Identifies a process, even if its pid is reused or the host is rebooted."""

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
    """A failed attempt of a run."""

    number: int
    started: float
    ended: float
    failure: Failure


@dataclass(frozen=True)
class HostState:
    """The state of a run on a host. Times are in seconds since the epoch, by that host's clock."""

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
    """The ranks of the hosts that take part in the current attempt; empty: all."""
    is_tidied: bool = False
    """Whether a stop has run `after_stop` since the end; also if it ended this host through the first one."""
    ended_with: tuple[int, ...] = ()
    """The hosts that a stop has ended through this one: nothing of the run was left, and no supervisor."""
    attempts: tuple[Attempt, ...] = ()
    """The failed attempts before the current one."""

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(asdict(self), indent=1) + "\n")

    def changed(self, **values: Any) -> HostState:
        return replace(self, **values)


def from_dict(raw: dict[str, Any]) -> HostState:
    """Build a state from its JSON form. Raises ValueError if it is not one."""
    try:
        names = ("supervisor", "guard", "engine")
        processes = {name: ProcessId(**raw[name]) if raw.get(name) else None for name in names}
        failure = Failure(**raw["failure"]) if raw.get("failure") else None
        ranks = {name: tuple(raw.get(name, ())) for name in ("members", "ended_with")}
        attempts = tuple(
            Attempt(**{**attempt, "failure": Failure(**attempt["failure"])})
            for attempt in raw.get("attempts", ())
        )
        return HostState(**{**raw, **processes, **ranks, "failure": failure, "attempts": attempts})
    except (TypeError, AttributeError) as error:
        raise ValueError(f"not a host state: {error}") from None


def read_state(path: Path, run_id: str | None = None) -> HostState | None:
    """Return the state of exactly this run (default: of any run); None if there is none yet.

    Raises:
        FlagScaleError: the state exists but cannot be read.
    """
    try:
        state = from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FlagScaleError(f"{path} cannot be read: {error}") from None
    return state if run_id in (None, state.run_id) else None


@dataclass(frozen=True)
class ServiceState:
    """One service as its agent sees it. Times are in seconds since the epoch, by that host's clock."""

    name: str
    phase: ServicePhase
    url: str = ""
    model: str = ""
    pid: int = 0
    since: float = 0.0
    """When the phase started."""
    requests_running: int | None = None
    requests_waiting: int | None = None
    tokens_per_s: float | None = None
    """Generated, at the last check."""
    prompt_tokens_per_s: float | None = None
    done: int | None = None
    total: int | None = None
    """The amount of work of a service that runs to an end; `done` is the part that is finished."""
    unit: str = "prompts"
    """What both count."""
    last_line: str = ""
    """The last line that it printed while starting."""
    behind: str = ""
    """The name of the service that passes requests on to it; empty: none."""
    restarts: int = 0
    """How often it was started again while the rest of the job went on."""
    failure: Failure | None = None
    """Why it last ended by itself."""

    def entered(self, phase: ServicePhase, since: float) -> ServiceState:
        """Return the state at the beginning of a phase: what was last seen of the load no longer holds."""
        return replace(
            self,
            phase=phase,
            since=since,
            last_line="",
            requests_running=None,
            requests_waiting=None,
            tokens_per_s=None,
            prompt_tokens_per_s=None,
        )


def to_json(run_id: str, states: Iterable[ServiceState]) -> str:
    """Return the file of a host's services; `from_json` reads it."""
    return json.dumps({"run_id": run_id, "services": [asdict(state) for state in states]}) + "\n"


def from_json(text: bytes, run_id: str) -> tuple[ServiceState, ...]:
    """Return the states that exactly this run wrote; empty if another run wrote the text, or none did."""
    try:
        raw = json.loads(text)
        return tuple(map(_service, raw["services"])) if raw["run_id"] == run_id else ()
    except (ValueError, TypeError, KeyError):
        return ()


def _service(raw: dict[str, Any]) -> ServiceState:
    failure = raw.get("failure")
    return ServiceState(**{**raw, "failure": Failure(**failure) if failure else None})
