"""The values between YAML and processes, frozen: `Job` (what) and `LaunchPlan` (where and how).

`Experiment -> Job -> LaunchPlan -> scripts` is pure; what `run` recorded as `plan.json` is what `query`,
`logs` and `stop` read back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PLAN_VERSION = 5
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
DEFAULT_PORT = 29500
"""torchrun's own, for the rendezvous of the ranks; the next one for the supervisors."""


@dataclass(frozen=True)
class Host:
    """A host of the job: its rank in the job (0: the master), its name, and the processes it runs."""

    rank: int
    name: str
    slots: int
    platform: str

    @property
    def is_localhost(self) -> bool:
        """Whether the name means whichever machine it is spoken on."""
        return self.name in LOCAL_NAMES

    @property
    def label(self) -> str:
        """The host in file names: `host_0_localhost`. A host name holds no `/` (see `cluster.hostfile`)."""
        return f"host_{self.rank}_{self.name}"


@dataclass(frozen=True)
class Role:
    """A service that the job runs on its hosts: one rank a slot, started by torchrun, unless the job says
    which `services` run where.
    """

    name: str
    entrypoint: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    stop_grace: float = 10.0
    """Seconds the ranks have to end by themselves after TERM."""


@dataclass(frozen=True)
class Service:
    """One process tree of a host that is no rank: an engine with its server, or a part of one.

    `argv` is what follows the role's entrypoint; in a plan it is the whole command line.
    """

    name: str
    argv: tuple[str, ...]
    url: str = ""
    """Where it answers `/health` on its host, and clients; empty for one that has to end well by itself."""
    model: str = ""
    """What clients call the model."""
    env: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[int, ...] = ()
    """Which of the devices that its host lets it see are its own, by place; empty: all."""
    ports: tuple[int, ...] = ()
    """What it listens on besides the port of `url`."""


def address_of(rank: int) -> str:
    """Return what stands, in a job's services, for the address of a host that only the launch will know."""
    return f"{{address of host {rank}}}"


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
    services: Mapping[int, tuple[Service, ...]] = field(default_factory=dict)
    """By host rank: what runs there in place of ranks; empty for a job of ranks."""
    picture: str = ""
    """A layout that takes more than a line to tell; empty for others."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """The arguments that name data and tokenizer; every host must be able to read those."""
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
    """The launcher of the host's ranks or services."""
    env: Mapping[str, str]
    cwd: str
    failure_file: str
    stop_grace: float
    options: Mapping[str, str] = field(default_factory=dict)
    """torchrun's options by name, if the launcher is torchrun."""
    program: tuple[str, ...] = ()
    """The program of the ranks and its arguments, which follow torchrun's options."""
    services: tuple[Service, ...] = ()
    """The services, if the launcher is that of services (`flagscale.node.services`)."""

    def command(self, hosts: tuple[int, ...] = ()) -> tuple[str, ...]:
        """Return the whole command line; `hosts` are the ranks of those that take part (default: as planned).

        Raises:
            ValueError: this host is not one of them.
        """
        place = {"nnodes": len(hosts), "node-rank": hosts.index(self.host.rank)} if hosts else {}
        options = {name: str(place.get(name, value)) for name, value in self.options.items()}
        words = (word for name, value in options.items() for word in (f"--{name}", value))
        return (*self.argv, *words, *self.program)


@dataclass(frozen=True)
class Rendezvous:
    """Where hosts meet: an address of the first one, the port of the ranks, and that of the supervisors."""

    address: str
    port: int = DEFAULT_PORT
    channel_port: int = DEFAULT_PORT + 1
    addresses: Mapping[int, str] = field(default_factory=dict)
    """By host rank: where the other hosts reach it."""


@dataclass(frozen=True)
class Channel:
    """Where the supervisor of the first host listens for those of the others."""

    address: str
    port: int


@dataclass(frozen=True)
class Machine:
    """The machine that a plan calls `localhost`: its name, and what tells this boot of it from all others."""

    name: str
    boot: str


@dataclass(frozen=True)
class Recovery:
    """What happens when a rank, an agent or a host dies."""

    max_restarts: int = 0
    restart_timeout: float = 300.0
    """Seconds that a restart waits for all hosts."""
    hang_timeout: float | None = None
    """Seconds without an iteration that count as a death; None: for ever."""
    fewer_hosts: tuple[int, ...] = ()
    """With how many hosts the job may go on where some stay away; most first."""


class PlanVersionError(ValueError):
    """A plan of another version of FlagScale; says which version it has and which one is read."""


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
    """The clone that the hosts import FlagScale from; empty if each interpreter has it installed."""
    before_start: str
    after_stop: str
    start_timeout: float
    nodes: tuple[NodeCommand, ...]
    channel: Channel | None = None
    """None where there is one host only."""
    recovery: Recovery = Recovery()
    ready_timeout: float = 1800.0
    """Seconds that servers have to load their models and answer."""
    runner: str = "ssh"
    """The registered name of the runner that has started it, and that is asked about it."""
    transport: str = "ssh"
    ssh_port: int | None = None
    connect_timeout: float = 10.0
    shared_fs: bool = True
    """Whether all hosts see the same run directory."""
    job_dir: str = ""
    """Where the job writes metrics and checkpoints, if not in the run directory itself."""
    picture: str = ""
    """A layout that takes more than a line to tell; empty for others."""
    host_paths: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By host name: what the beginnings of paths are called there instead."""
    started_on: Machine | None = None
    """None where that was not recorded."""
    version: int = PLAN_VERSION

    @property
    def hosts(self) -> list[Host]:
        return [node.host for node in self.nodes]

    def node(self, rank: int) -> NodeCommand:
        """Return the part of the host with this rank; ValueError where the plan has none."""
        for node in self.nodes:
            if node.host.rank == rank:
                return node
        raise ValueError(f"host {rank} is not part of the plan")

    def on_host(self, name: str) -> LaunchPlan:
        """Return the plan as a host takes it: every path as it is called there."""
        renamed = self.host_paths.get(name)
        return LaunchPlan.from_json(json.dumps(_renamed(asdict(self), renamed))) if renamed else self

    def path_on(self, name: str, path: str) -> str:
        """Return what a path of this plan is called on a host."""
        return str(_renamed(path, self.host_paths.get(name, {})))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> LaunchPlan:
        """Read a plan back.

        Raises:
            PlanVersionError: another version of FlagScale wrote it.
            ValueError: it is not a plan.
        """
        raw: dict[str, Any] = json.loads(text)
        if not isinstance(raw, dict) or not isinstance(version := raw.get("version"), int):
            raise ValueError("not a launch plan")
        if version != PLAN_VERSION:
            raise PlanVersionError(f"plan version {version}, this one reads {PLAN_VERSION}")
        try:
            nodes = tuple(map(_node_from, raw["nodes"]))
            recovery = raw["recovery"]
            return LaunchPlan(
                **{
                    **raw,
                    "nodes": nodes,
                    "channel": Channel(**raw["channel"]) if raw["channel"] else None,
                    "started_on": Machine(**raw["started_on"]) if raw["started_on"] else None,
                    "recovery": Recovery(**{**recovery, "fewer_hosts": tuple(recovery["fewer_hosts"])}),
                }
            )
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a launch plan: {error}") from None


def _node_from(raw: dict[str, Any]) -> NodeCommand:
    services = tuple(
        Service(**{**one, **{name: tuple(one[name]) for name in ("argv", "devices", "ports")}})
        for one in raw["services"]
    )
    return NodeCommand(
        **{
            **raw,
            "host": Host(**raw["host"]),
            "argv": tuple(raw["argv"]),
            "program": tuple(raw["program"]),
            "services": services,
        }
    )


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    """Replace the beginnings of all paths in plain values, the longest that fits."""
    if isinstance(value, dict):
        return {key: item if key == "host_paths" else _renamed(item, names) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_renamed(item, names) for item in value]
    if isinstance(value, str) and value:
        paths = value.split(":")
        if len(paths) > 1 and all(path.startswith("/") for path in paths):  # PYTHONPATH and its like
            return ":".join(_renamed(path, names) for path in paths)
        for here in sorted(names, key=len, reverse=True):
            stem = here.rstrip("/")
            if value == stem or value.startswith(f"{stem}/"):
                return names[here].rstrip("/") + value[len(stem) :] or "/"
    return value
