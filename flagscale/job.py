"""The values between YAML and processes, frozen: `Job` (what) and `LaunchPlan` (where and how).

`Experiment -> Job -> LaunchPlan -> scripts` is pure; what `run` recorded as `plan.json` is what `query`,
`logs` and `stop` read back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PLAN_VERSION = 1


@dataclass(frozen=True)
class Host:
    """A host of the job: its rank in the job (0: the master), its name, and the processes it runs."""

    rank: int
    name: str
    slots: int
    platform: str

    @property
    def label(self) -> str:
        """The host in file names: `host_0_localhost`. A host name holds no `/` (see `cluster.hostfile`)."""
        return f"host_{self.rank}_{self.name}"


@dataclass(frozen=True)
class Role:
    """A program that the job runs on its hosts: one rank a slot, started by torchrun."""

    name: str
    entrypoint: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    stop_grace: float = 10.0
    """Seconds the ranks have to end by themselves after TERM."""


@dataclass(frozen=True)
class Job:
    """What to run on which hosts; says nothing yet about addresses, ports and paths of the launch."""

    name: str
    task_type: str
    engine: str
    engine_version: str
    role: Role
    hosts: tuple[Host, ...]
    layout: str
    """The parallel degrees, for people."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Environment that must not be written down; never part of a plan."""
    notices: tuple[str, ...] = ()

    @property
    def world_size(self) -> int:
        return sum(host.slots for host in self.hosts)


@dataclass(frozen=True)
class NodeCommand:
    """Everything the supervisor of one host needs: argv and environment as data, never as a shell string."""

    host: Host
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    failure_file: str
    stop_grace: float


@dataclass(frozen=True)
class LaunchPlan:
    """One start of a job: what `dryrun` prints and `run` runs."""

    run_id: str
    name: str
    task_type: str
    engine: str
    engine_version: str
    layout: str
    world_size: int
    exp_dir: str
    python: str
    source_root: str
    before_start: str
    after_stop: str
    start_timeout: float
    nodes: tuple[NodeCommand, ...]
    version: int = PLAN_VERSION

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> LaunchPlan:
        """Read a plan back. Raises ValueError for text that is no plan of this version."""
        raw: dict[str, Any] = json.loads(text)
        if not isinstance(raw, dict) or raw.get("version") != PLAN_VERSION:
            raise ValueError(f"not a launch plan of version {PLAN_VERSION}")
        try:
            nodes = tuple(
                NodeCommand(**{**node, "host": Host(**node["host"]), "argv": tuple(node["argv"])})
                for node in raw["nodes"]
            )
            return LaunchPlan(**{**raw, "nodes": nodes})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a launch plan: {error}") from None
