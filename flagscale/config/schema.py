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

ACTIONS = ("run", "test", "dryrun", "check", "query", "logs", "stop")
TASK_TYPES = ("train", "inference", "serve")


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
    if isinstance(value, str) and ":" in value:
        raise ValueError(
            "a range of hosts (elastic start) is not available: give a number, or leave the key out"
        )
    return _not_bool(value)


def _name(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value):
        raise ValueError("an environment variable's name holds letters, digits and `_` only")
    return value


def _text(value: object) -> object:
    """YAML reads `VALUE: 0` as a number; the environment holds text only."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


Port = Annotated[int, BeforeValidator(_not_bool), Field(ge=1, le=65535)]
Seconds = Annotated[float, BeforeValidator(_not_bool), Field(gt=0)]
Text = Annotated[str, BeforeValidator(_text)]
Ranks = Annotated[int | Literal["auto"], PlainValidator(_ranks)]
Name = Annotated[str, AfterValidator(_name)]


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
    type: Literal["train", "inference", "serve"] = "train"
    """What is done; also the name of the group that holds the engine's arguments."""
    backend: str
    """The engine: `megatron`."""
    entrypoint: str
    """The program of every rank: a module (`megatron.flagscale.train_gpt`) or a path ending in `.py`."""


class Runner(Section):
    type: Literal["ssh"] = "ssh"
    """How hosts are reached. `ssh`: hosts of the hostfile; without a hostfile, this host."""
    backend: Literal["torchrun"] = "torchrun"
    """The launcher that starts a host's ranks."""
    hostfile: str | None = None
    """Path of a file with a line `host slots=N [type=NAME]` for every host."""
    nnodes: Annotated[int, BeforeValidator(_hosts), Field(ge=1)] | None = None
    """How many hosts of the hostfile to use; default: all of them."""
    nproc_per_node: Ranks = "auto"
    """Ranks on each host; `auto`: one for each device (on `cpu`: one)."""
    platform: str = "auto"
    """The chip: `nvidia`, `cpu`, or an installed plugin's; `auto`: what this host has."""
    master_addr: str | None = None
    """Address of the first host as the others reach it."""
    master_port: Port | None = None
    """Rendezvous port on the first host; default: one that is free there."""
    rdzv_id: Text | None = None
    rdzv_backend: str | None = None
    rdzv_endpoint: str | None = None
    rdzv_conf: str | None = None
    """torchrun's rendezvous, where the default does not fit."""
    redirects: Text = "3"
    tee: Text = "3"
    """torchrun's: which of a rank's streams go to files and to the host's log (3: both)."""
    log_dir: str | None = None
    """Where torchrun keeps the streams of each rank; default: `logs/details` in the run directory."""
    local_addr: str | None = None
    monitor_interval: Seconds | None = None
    """torchrun's, passed on."""
    max_restarts: Annotated[int, BeforeValidator(_not_bool), Field(ge=0)] = 0
    """How often torchrun starts a host's ranks again, from the newest checkpoint, after one failed."""
    ssh_port: Port = 22
    python: str | None = None
    """The interpreter on the hosts; default: the one that runs this command."""
    start_timeout: Seconds = 60.0
    """Seconds within which every host must confirm that the job runs there."""
    stop_grace: Seconds | None = None
    """Seconds the ranks have to end by themselves when stopped; default: the engine's, longer if it saves."""


class Commands(Section):
    before_start: str = ""
    """Shell lines at the top of each host's script; the start fails if one of them does."""
    after_stop: str = ""
    """Shell lines at the end of each host's stop script."""


class ExperimentSection(Section):
    """The keys below `experiment`."""

    exp_name: Text
    """The run's name in lists and logs."""
    exp_dir: str
    """The run directory: everything that the run writes is below it."""
    task: Task
    runner: Runner = Runner()
    envs: dict[Name, Text] = {}
    """Environment of every process of the job."""
    cmds: Commands = Commands()


class Experiment(BaseModel):
    """A configuration that passed every check of the experiment level; paths absolute, all resolved."""

    model_config = ConfigDict(frozen=True)

    name: str
    exp_dir: Path
    task: Task
    runner: Runner
    envs: dict[str, str]
    cmds: Commands
    arguments: dict[str, Any]
    """The task group as plain values: sections of engine arguments."""
