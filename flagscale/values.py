"""The values between YAML and processes, frozen: `Job` (what) and `LaunchPlan` (where and how).

`Experiment -> Job -> LaunchPlan -> scripts` is pure; what `run` recorded as `plan.json` is what `query`,
`logs` and `stop` read back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from flagscale.frozen import asdict, dataclass, field, replace

PLAN_VERSION = 6
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
DEFAULT_PORT = 29500
"""torchrun's default, for the rendezvous of the ranks; the supervisors use the next port."""


@dataclass(frozen=True)
class Host:
    """A host of the job: its rank in the job (0: the first host), its name, and how many ranks it runs."""

    rank: int
    name: str
    slots: int
    platform: str

    @property
    def is_localhost(self) -> bool:
        """Whether the name means the machine that resolves it, whichever that is."""
        return self.name in LOCAL_NAMES

    @property
    def label(self) -> str:
        """The host in file names: `host_0_localhost`. A host name contains no `/` (see `plan.hostfile`)."""
        return f"host_{self.rank}_{self.name}"


@dataclass(frozen=True)
class Role:
    """The program that a job runs on its hosts: one rank per slot, started by torchrun, unless the job lists
    `services` per host.
    """

    name: str
    entrypoint: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    stop_grace: float = 10.0
    """Seconds that the ranks have to exit after SIGTERM, or services to finish what they have begun."""


@dataclass(frozen=True)
class Service:
    """One process tree on a host that is not a rank: an engine with its server, or a part of one.

    `argv` follows the role's entrypoint; in a plan it is the whole command line.
    """

    name: str
    argv: tuple[str, ...]
    url: str = ""
    """Where it answers `/health` and clients; empty for a service that runs until its work is done."""
    model: str = ""
    """The model's name for clients."""
    env: Mapping[str, str] = field(default_factory=dict)
    devices: tuple[int, ...] = ()
    """The devices that it uses, as indices into those that its host makes visible; empty: all of them."""
    ports: tuple[int, ...] = ()
    """The ports on which it listens besides that of `url`."""
    entrypoint: str = ""
    """The module that runs instead of the role's; empty: the role's."""
    behind: str = ""
    """The name of the service that passes requests on to this one; empty: none."""


def address_of(rank: int) -> str:
    """Return the placeholder, in a job's services, for a host's address that is known only at launch."""
    return f"{{address of host {rank}}}"


@dataclass(frozen=True)
class Job:
    """What to run on which hosts, before addresses, ports and paths are decided."""

    name: str
    task_type: str
    engine: str
    engine_version: str
    role: Role
    hosts: tuple[Host, ...]
    layout: str
    """The parallel degrees as text for people."""
    services: Mapping[int, tuple[Service, ...]] = field(default_factory=dict)
    """By host rank: the services that run there instead of ranks; empty for a job of ranks."""
    own_roles: Mapping[int, Role] = field(default_factory=dict)
    """By host rank: the program of a host that runs a job of its own; empty if the hosts run one job."""
    picture: str = ""
    """The layout as a picture, if it needs more than one line; otherwise empty."""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    """The arguments that name data and tokenizer, which every host must be able to read."""
    packages: tuple[str, ...] = ()
    """The distributions, besides the engine, that every host must have installed; `a|b`: one of them."""
    install: str = ""
    """The command that installs the engine; empty: it depends on the host."""
    secrets: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that must not be written to a file; never part of a plan."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Every argument of the engine by dest, with the defaults of a worker on these hosts; empty if the engine
    has none that are known here. Never part of a plan."""
    has_own_model: bool = False
    """Whether the program may have a model of its own, which `arguments` do not describe."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """By key path of the task level: the text of an argument that the engine gets as text, such as `1.10`,
    although YAML reads a number."""
    notices: tuple[str, ...] = ()

    @property
    def world_size(self) -> int:
        return sum(host.slots for host in self.hosts)


@dataclass(frozen=True)
class NodeCommand:
    """Everything the supervisor of one host needs: argv and environment as data, never as a shell string."""

    host: Host
    argv: tuple[str, ...]
    """The agent that starts the host's ranks or services."""
    env: Mapping[str, str]
    cwd: str
    failure_file: str
    stop_grace: float
    options: Mapping[str, str] = field(default_factory=dict)
    """torchrun's options by name, if the agent is torchrun; a switch has an empty value."""
    program: tuple[str, ...] = ()
    """The ranks' program and its arguments, which follow torchrun's options."""
    services: tuple[Service, ...] = ()
    """The services, if the agent is the one of services (`flagscale.node.services`)."""
    job_dir: str = ""
    """Where this host's own job writes metrics and checkpoints; empty if the hosts run one job."""

    def command(self, hosts: tuple[int, ...] = ()) -> tuple[str, ...]:
        """Return the whole command line; `hosts`: ranks of the hosts that take part (default: as planned).

        Raises:
            ValueError: if this host is not one of them.
        """
        place = {"nnodes": len(hosts), "node-rank": hosts.index(self.host.rank)} if hosts else {}
        options = {name: str(place.get(name, value)) for name, value in self.options.items()}
        words = (word for name, value in options.items() for word in _words(name, value))
        return (*self.argv, *words, *self.program)


def _words(name: str, value: str) -> tuple[str, ...]:
    if value.startswith("-"):  # as a word of its own, it would be read as an option
        return (f"--{name}={value}",)
    return (f"--{name}", value) if value else (f"--{name}",)


@dataclass(frozen=True)
class Rendezvous:
    """Where the hosts find each other: the first one's address, the ranks' port and the supervisors' port."""

    address: str
    port: int = DEFAULT_PORT
    channel_port: int = DEFAULT_PORT + 1
    addresses: Mapping[int, str] = field(default_factory=dict)
    """By host rank: the address at which the other hosts reach it."""


@dataclass(frozen=True)
class Channel:
    """Where the first host's supervisor listens for those of the other hosts."""

    address: str
    port: int


@dataclass(frozen=True)
class Machine:
    """The machine that a plan calls `localhost`: its name, and an identifier of its current boot."""

    name: str
    boot: str


@dataclass(frozen=True)
class Recovery:
    """How the job recovers when a rank, an agent or a host dies."""

    max_restarts: int = 0
    """How often all hosts start again; also how often a service that lives apart does."""
    restart_timeout: float = 300.0
    """Seconds that a restart waits for all hosts."""
    hang_timeout: float | None = None
    """Seconds without an iteration after which the job counts as dead; None: no limit."""
    fewer_hosts: tuple[int, ...] = ()
    """With how many hosts the job may continue if some do not return; largest number first."""

    @staticmethod
    def pause(restart: int) -> float:
        """Return the seconds to wait before a restart, numbered from 1: 1, 2, 4 ... 60."""
        return min(2.0 ** min(restart - 1, 6), 60.0)


class PlanVersionError(ValueError):
    """A plan was written by another version of FlagScale; the message names both plan versions."""


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
    """None if there is only one host."""
    recovery: Recovery = Recovery()
    ready_timeout: float = 1800.0
    """Seconds that servers have to load their models and answer."""
    runner: str = "ssh"
    """The registered name of the runner that started the job and reports on it."""
    slurm: Mapping[str, Any] = field(default_factory=dict)
    """The given keys of `experiment.runner.slurm`, as plain values."""
    transport: str = "ssh"
    ssh_port: int | None = None
    connect_timeout: float = 10.0
    shared_fs: bool = True
    """Whether all hosts see the same run directory."""
    job_dir: str = ""
    """Where the job writes metrics and checkpoints, if not in the run directory itself."""
    picture: str = ""
    """The layout as a picture, if it needs more than one line; otherwise empty."""
    host_paths: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By host name: prefixes of paths, and what replaces them there."""
    started_on: Machine | None = None
    """None if that was not recorded."""
    version: int = PLAN_VERSION

    @property
    def hosts(self) -> list[Host]:
        return [node.host for node in self.nodes]

    @property
    def services(self) -> list[Service]:
        return [service for node in self.nodes for service in node.services]

    @property
    def has_own_jobs(self) -> bool:
        """Whether each host runs a job of its own."""
        return any(node.job_dir for node in self.nodes)

    @property
    def stops_together(self) -> bool:
        """Whether a stop of the first host ends the others through the channel, without a session on each.

        Lines to run after a stop need that session.
        """
        return self.channel is not None and not self.after_stop

    def node(self, rank: int) -> NodeCommand:
        """Return the command of the host with this rank; raises ValueError if the plan has no such host."""
        for node in self.nodes:
            if node.host.rank == rank:
                return node
        raise ValueError(f"host {rank} is not part of the plan")

    def on_host(self, name: str) -> LaunchPlan:
        """Return the plan for a host, with its paths as they are named there; those of other hosts remain."""
        renamed = self.host_paths.get(name)
        if not renamed:
            return self
        # Without the others: a start asks this for each host, and thousands of them may rename paths.
        own = replace(self, nodes=tuple(node for node in self.nodes if node.host.name == name), host_paths={})
        there = LaunchPlan.from_json(json.dumps(_renamed(asdict(own), renamed)))
        nodes = {node.host.rank: node for node in (*self.nodes, *there.nodes)}
        return replace(there, nodes=tuple(nodes.values()), host_paths=self.host_paths)

    def path_on(self, name: str, path: str) -> str:
        """Return the name that a path of this plan has on a host."""
        return str(self.renamed_on(name, path))

    def renamed_on(self, name: str, value: Any) -> Any:
        """Return plain values with every path as it is named on a host."""
        return _renamed(value, self.host_paths.get(name, {}))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n"

    @staticmethod
    def from_json(text: str) -> LaunchPlan:
        """Read a plan back.

        Raises:
            PlanVersionError: if another version of FlagScale wrote it.
            ValueError: if it is not a plan.
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
    """Replace the prefixes of all paths in plain values; the longest matching prefix wins."""
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
