"""Which hosts the job runs on, in rank order, and how many ranks each of them has."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

from flagscale.config.schema import Runner
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem, UserError, nearest
from flagscale.plan.hostfile import HostLine, read_hostfile
from flagscale.values import Host


def select_hosts(
    runner: Runner, platform: str, devices: int, shares_devices: bool, source_map: SourceMap | None = None
) -> tuple[Host, ...]:
    """Return the hosts of the job.

    Without a hostfile that is this host alone, with `devices` slots unless `nproc_per_node` says otherwise.

    Raises:
        UserError: a bad hostfile, fewer hosts or devices than asked for.
    """
    where = (source_map or SourceMap()).where
    if runner.node_rank is not None and runner.type != "cloud":
        what, hint = "`node_rank` means nothing here", "ranks follow the order of the hostfile"
        raise UserError([Problem(what, where("experiment.runner.node_rank"), hint)])
    ranks = runner.nproc_per_node if isinstance(runner.nproc_per_node, int) else None
    if runner.hostfile:
        lines = _hostfile_lines(runner.hostfile, where("experiment.runner.hostfile"))
        lines = _chosen(lines, runner, where)
        source = f"{os.path.relpath(runner.hostfile)} has {len(lines)}"
    else:
        for key in ("include", "exclude"):
            if getattr(runner, key) and runner.type != "cloud":
                what = f"`{key}` chooses among the hosts of a hostfile, and there is none"
                raise UserError([Problem(what, where(f"experiment.runner.{key}"))])
        slots = devices if ranks is None else ranks
        lines = _of_platform(runner, slots) if runner.type == "cloud" else (HostLine("localhost", slots),)
        source = "there is no hostfile"
        if problem := _device_problem(ranks, platform, devices, shares_devices):
            raise UserError([Problem(problem.what, where(problem.where), problem.hint)])
    _, wanted = runner.host_range(len(lines))
    problems = []
    if wanted > len(lines):
        what, hint = f"nnodes is {wanted}, but {source}", "name the hosts in experiment.runner.hostfile"
        problems.append(Problem(what, where("experiment.runner.nnodes"), hint))
    problems += [
        Problem(
            f"`{line.name}` offers {line.slots} slots, nproc_per_node asks for {ranks}",
            where("experiment.runner.nproc_per_node"),
        )
        for line in lines[:wanted]
        if ranks is not None and ranks > line.slots
    ]
    if problems:
        raise UserError(problems)
    return tuple(
        Host(rank=rank, name=line.name, slots=ranks or line.slots, platform=line.type or platform)
        for rank, line in enumerate(lines[:wanted])
    )


def _hostfile_lines(path: str, where: str) -> tuple[HostLine, ...]:
    if not Path(path).exists():
        raise UserError(
            [Problem(f"there is no hostfile {path}", where, "leave the key out for this host alone")]
        )
    return read_hostfile(Path(path))


def _of_platform(runner: Runner, slots: int) -> tuple[HostLine, ...]:
    """Return all hosts that a platform runs; the names of the others are not known, nor are they needed."""
    count, _ = runner.host_range(1)
    names = [f"host-{rank}" for rank in range(count)]
    names[runner.node_rank or 0] = socket.gethostname()
    return tuple(HostLine(name, slots) for name in names)


def _chosen(lines: tuple[HostLine, ...], runner: Runner, where: Callable[[str], str]) -> tuple[HostLine, ...]:
    """Return the hosts that `include` and `exclude` leave, in the order of the hostfile."""
    names = [line.name for line in lines]
    problems = [
        Problem(f"the hostfile has no host `{name}`", where(f"experiment.runner.{key}"), nearest(name, names))
        for key in ("include", "exclude")
        for name in getattr(runner, key)
        if name not in names
    ]
    kept = tuple(
        line
        for line in lines
        if (not runner.include or line.name in runner.include) and line.name not in runner.exclude
    )
    if not kept and not problems:
        problems.append(Problem("no host of the hostfile is left", where("experiment.runner.exclude")))
    if problems:
        raise UserError(problems)
    return kept


def _device_problem(ranks: int | None, platform: str, devices: int, shares_devices: bool) -> Problem | None:
    if ranks is None and devices < 1:
        what = f"no {platform} device on this host"
        return Problem(what, "experiment.runner.platform", "set experiment.runner.platform=cpu")
    if ranks is not None and ranks > devices and not shares_devices:
        what = f"nproc_per_node is {ranks}, but this host has {devices} {platform} devices"
        hint = "lower it and the parallel degrees, or set experiment.runner.platform=cpu"
        return Problem(what, "experiment.runner.nproc_per_node", hint)
    return None
