"""The experiment level of a configuration: every key, its type, its default and what it means.

The names are those of FlagScale v0.6.0, so that its users' files keep working.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    model_validator,
)

from flagscale.config.secrets import is_secret


def _not_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("input should be a number, not true or false")
    return value


def _ranks(value: object) -> object:
    """Check by hand: pydantic would tell one mistake once for each member of the union."""
    if value == "auto":
        return value
    try:
        count = int(value) if isinstance(value, int | str) and not isinstance(value, bool) else 0
    except ValueError:
        count = 0
    if count < 1:
        raise ValueError("input should be `auto` or a whole number of at least 1")
    return count


def _hosts(value: object) -> object:
    """A number, or a range `min:max` as text."""
    numbers = str(value).split(":") if isinstance(value, str | int) and not isinstance(value, bool) else []
    if not 1 <= len(numbers) <= 2 or not all(number.strip().isdigit() for number in numbers):
        raise ValueError('input should be a whole number of hosts, or "min:max"')
    least, most = int(numbers[0]), int(numbers[-1])
    if not 1 <= least <= most:
        raise ValueError('input should be at least 1, and in "min:max" the smaller number comes first')
    return most if least == most else f"{least}:{most}"


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("an environment variable's name holds letters, digits and `_` only")
    return value


def _no_secret(value: str) -> str:
    if is_secret(value):
        raise ValueError(f"`{value}` is a secret: it can be given for all hosts only")
    return value


def _text(value: object) -> object:
    """YAML reads `VALUE: 0` as a number; the environment holds text only."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _streams(value: str) -> str:
    if not re.fullmatch(r"[0-3]|(\d:[0-3],)*\d:[0-3]", value):
        raise ValueError('input should be 0 (none), 1 (stdout), 2 (stderr), 3 (both), or by rank "0:3,1:2"')
    return value


def _pairs(value: str) -> str:
    if not all(re.fullmatch(r"[^=]*\S[^=]*=.*\S.*", pair) for pair in value.split(",")):
        raise ValueError("input should be key=value[,key=value ...]")
    return value


Port = Annotated[int, BeforeValidator(_not_bool), Field(ge=1, le=65535)]
Seconds = Annotated[float, BeforeValidator(_not_bool), Field(gt=0)]
Text = Annotated[str, BeforeValidator(_text)]
Streams = Annotated[Text, AfterValidator(_streams)]
Ranks = Annotated[int | Literal["auto"], PlainValidator(_ranks)]
Name = Annotated[str, AfterValidator(_name)]
OpenName = Annotated[Name, AfterValidator(_no_secret)]


class Section(BaseModel):
    """A group of keys: frozen, and a key that is not listed is a mistake."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _null_is_default(cls, values: object) -> object:
        """Take `key:` with nothing behind it as not given, where there is a default."""
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {
            key: value
            for key, value in values.items()
            if value is not None or key not in fields or fields[key].is_required()
        }


class Task(Section):
    type: str = "train"
    """One of the engine's task types; also the name of the group that holds the engine's arguments."""
    backend: str
    """The engine: `megatron` (train), `vllm` (inference, serve), or an installed package's."""
    entrypoint: str = ""
    """The program: a module (`megatron.flagscale.train_gpt`) or a path to a `.py`; default: the engine's."""


class Runner(Section):
    type: str = "ssh"
    """Who gives and starts the hosts. `ssh`: hosts of the hostfile; without a hostfile, this host. `cloud`: a
    platform runs this command on every host. Or an installed plugin's name."""
    options: dict[str, Any] = {}
    """Keys of the runner's own, if it has any: the partition and the time limit of a batch system."""
    backend: Literal["torchrun"] = "torchrun"
    """The agent that starts the ranks of a host."""
    hostfile: str | None = None
    """Path of a file with a line `host slots=N [type=NAME]` for every host."""
    nnodes: Annotated[int | str, PlainValidator(_hosts)] | None = None
    """How many hosts of the hostfile to use; default: all. `"min:max"`: a restart may do with fewer."""
    nproc_per_node: Ranks = "auto"
    """Ranks on each host; `auto`: the hostfile's `slots`; without one one a device (on `cpu`: one)."""
    platform: str = "auto"
    """The chip: `nvidia`, `cpu`, or an installed plugin's; `auto`: what this host has."""
    node_rank: Annotated[int, BeforeValidator(_not_bool), Field(ge=0)] | None = None
    """The place of this host among the hosts, with `type: cloud` only; default: what the platform says."""
    master_addr: str | None = None
    """Address of the first host as the others reach it."""
    master_port: Port | None = None
    """Rendezvous port on the first host; default: one that is free there."""
    rdzv_id: Text | None = None
    rdzv_backend: str | None = None
    rdzv_endpoint: str | None = None
    rdzv_conf: Annotated[str, AfterValidator(_pairs)] | None = None
    """torchrun's rendezvous, where the default does not fit."""
    redirects: Streams = "3"
    tee: Streams = "3"
    """torchrun's: which of a rank's streams go to files and to the host's log (3: both)."""
    log_dir: str | None = None
    """Where torchrun keeps the streams of each rank; default: `logs/details` in the run directory."""
    local_addr: str | None = None
    monitor_interval: Seconds | None = None
    """torchrun's, passed on."""
    max_restarts: Annotated[int, BeforeValidator(_not_bool), Field(ge=0)] = 0
    """How often the job is started again on all its hosts, from the newest checkpoint, after a part died."""
    restart_timeout: Seconds = 300.0
    """Seconds that a restart waits for all hosts; then it takes fewer (`nnodes: "min:max"`) or fails."""
    hang_timeout: Seconds | None = None
    """Seconds without an iteration that count as a death of the job (ten minutes more before the first one);
    default: never."""
    no_shared_fs: bool = False
    """Whether the hosts do not see the same run directory: then scripts are sent, and logs read back."""
    host_paths: dict[str, dict[str, str]] = {}
    """By host of the hostfile: beginnings of paths, and what they are called there instead."""
    include: list[str] = []
    """Use only these hosts of the hostfile; default: all."""
    exclude: list[str] = []
    """Do not use these hosts of the hostfile."""
    transport: str = "ssh"
    """How a host is reached that is not this one: `ssh`, or an installed plugin's name."""
    ssh_port: Port | None = None
    """Default: what `~/.ssh/config` says, else 22."""
    connect_timeout: Seconds = 10.0
    """Seconds that a host has to answer when it is connected to."""
    python: str | None = None
    """The interpreter on the hosts; default: the one that runs this command."""
    start_timeout: Seconds = 60.0
    """Seconds within which every host must confirm that the job runs there."""
    ready_timeout: Seconds = 1800.0
    """Seconds that servers have to load their models and answer."""
    stop_grace: Seconds | None = None
    """Seconds the ranks have to end by themselves when stopped; default: the engine's, longer if it saves."""

    def host_range(self, available: int) -> tuple[int, int]:
        """Return the least and the largest number of hosts; both are `available` where none is named."""
        least, _, most = str(self.nnodes or available).partition(":")
        return int(least), int(most or least)


class Environment(Section):
    """Environment of every process of the job; the more special one wins."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Name, Text] = Field(init=False)

    device_type_specific: dict[str, dict[OpenName, Text]] = {}
    """By the `type=` of the hostfile."""
    node_specific: dict[str, dict[OpenName, Text]] = {}
    """By the name of the host in the hostfile."""

    def common(self) -> dict[str, str]:
        """What all hosts have."""
        return dict(self.__pydantic_extra__)

    def on_host(self, name: str, kind: str) -> dict[str, str]:
        """What one host has."""
        special = (self.device_type_specific.get(kind, {}), self.node_specific.get(name, {}))
        return {**self.common(), **special[0], **special[1]}


class Commands(Section):
    before_start: str = ""
    """Shell lines at the top of each host's script; the start fails if one of them does."""
    after_stop: str = ""
    """Shell lines that `stop` runs on each host where it has ended the job; it fails if one of them does."""


class ExperimentSection(Section):
    """The keys below `experiment`."""

    exp_name: Text
    """The run's name in lists and logs."""
    exp_dir: str
    """The run directory: everything that the run writes is below it."""
    task: Task
    runner: Runner = Runner()
    envs: Environment = Environment()
    cmds: Commands = Commands()


class Experiment(BaseModel):
    """A configuration that passed every check of the experiment level; paths absolute, all resolved."""

    model_config = ConfigDict(frozen=True)

    name: str
    exp_dir: Path
    task: Task
    runner: Runner
    envs: Environment
    cmds: Commands
    arguments: dict[str, Any]
    """The task group as plain values: sections of engine arguments."""
