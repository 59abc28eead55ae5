"""`runner.type: cloud`: a platform starts this command on every host and, unless keys do, sets its rank."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from flagscale.config.host_names import refusal
from flagscale.config.schema import Runner
from flagscale.errors import Problem, UserError
from flagscale.plan.hostfile import HostLine
from flagscale.plan.hosts import slots_here
from flagscale.plan.runner import LocalDevices, RunnerRules, Share, Where
from flagscale.run.rundir import RunDir
from flagscale.runners.base import JobRunner

_NAMES = {
    "nnodes": ("PET_NNODES", "NNODES", "WORLD_SIZE"),
    "node_rank": ("PET_NODE_RANK", "NODE_RANK", "RANK"),
    "master_addr": ("PET_MASTER_ADDR", "MASTER_ADDR"),
    "master_port": ("PET_MASTER_PORT", "MASTER_PORT"),
}
"""Variables that platforms set, in order of preference. Outside ranks, WORLD_SIZE and RANK count hosts."""

_REFUSED = {
    "hostfile": "the platform starts the hosts",
    "include": "the platform chooses the hosts",
    "exclude": "the platform chooses the hosts",
    "max_restarts": "the platform restarts the hosts",
    "no_shared_fs": "every host runs its own command",
    "host_paths": "every host runs its own command",
    "per_node_task": "every host runs its own command; with nnodes: 1 and an exp_dir per host, its own job",
}


def on_this_host(runner: Runner, environ: Mapping[str, str], where: Where) -> Runner:
    """Return the keys, completed from the platform's environment; given keys come first.

    Raises:
        UserError: a value is missing or is not a number.
    """
    problems: list[Problem] = []
    found: dict[str, int | str] = {}
    sources: dict[str, str] = {}
    for key, names in _NAMES.items():
        given = getattr(runner, key)
        name = next((name for name in names if environ.get(name)), "") if given is None else ""
        value = environ[name] if name else "" if given is None else str(given)
        sources[key] = name or where(f"experiment.runner.{key}")
        if key == "master_addr":
            found[key] = value
            if value and (reason := refusal(value)):
                problems.append(Problem(reason, sources[key]))
        elif value.isdigit():
            found[key] = int(value)
        elif value:
            problems.append(Problem(f"expected a number, not `{value}`", sources[key]))
    hosts = found.get("nnodes", 1)
    for key in ("node_rank", "master_addr"):
        if hosts != 1 and found.get(key, "") == "" and sources[key] not in {one.where for one in problems}:
            what = f"`{key}` is required with type: cloud and {hosts} hosts"
            hint = f"set the key or one of the environment variables {', '.join(_NAMES[key])}"
            problems.append(Problem(what, sources[key], hint))
    rank = found.get("node_rank", 0)
    if not problems and not 0 <= int(rank) < int(hosts):
        problems.append(Problem(f"host {rank} of {hosts} hosts: ranks start at 0", sources["node_rank"]))
    if problems:
        raise UserError(problems)
    return runner.model_copy(
        update={
            "nnodes": hosts,
            "node_rank": rank,
            "master_addr": found["master_addr"] or None,
            "master_port": found.get("master_port"),
        }
    )


def hosts(runner: Runner, devices: LocalDevices, where: Where) -> tuple[HostLine, ...]:
    """Return all hosts that the platform runs; the names of the other hosts are unknown and not needed."""
    count, _ = runner.host_range(1)
    names = [f"host-{rank}" for rank in range(count)]
    names[runner.node_rank or 0] = os.uname().nodename
    slots = slots_here(runner, devices, where)
    return tuple(HostLine(name, slots) for name in names)


def share(exp_dir: Path, node_rank: int | None, environ: Mapping[str, str]) -> Share:
    """Return this host's share: its rank (0 if unknown) and a folder of its own, because hosts may share
    `exp_dir`."""
    said = (environ.get(name, "") for name in _NAMES["node_rank"])
    rank = node_rank if node_rank is not None else next((int(one) for one in said if one.isdigit()), 0)
    return Share(RunDir(exp_dir).share_of(rank).path, rank)


CLOUD = JobRunner(
    RunnerRules("cloud", hosts, refused=_REFUSED, resolve=on_this_host, share=share, foreground=True)
)
