"""How the programs of a host are: a small JSON file that their launcher writes whole."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

ProgramPhase = Literal["starting", "ready", "unhealthy", "running", "finished", "failed", "stopped"]
"""`ready` and `unhealthy` are a server's, `finished` is that of a program that has an end."""
OVER: tuple[ProgramPhase, ...] = ("finished", "failed", "stopped")


@dataclass(frozen=True)
class ProgramState:
    """One program as its launcher sees it. Times are seconds since the epoch on that host."""

    name: str
    phase: ProgramPhase
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
    """How much of what a program with an end has to do."""
    last_line: str = ""
    """What it printed last, while it starts."""


def to_json(run_id: str, states: Iterable[ProgramState]) -> str:
    return json.dumps({"run_id": run_id, "programs": [asdict(state) for state in states]}) + "\n"


def from_json(text: bytes, run_id: str) -> tuple[ProgramState, ...]:
    """Return the states that this very run wrote; none where the text is another run's, or none yet."""
    try:
        raw = json.loads(text)
        return tuple(ProgramState(**state) for state in raw["programs"]) if raw["run_id"] == run_id else ()
    except (ValueError, TypeError, KeyError):
        return ()
