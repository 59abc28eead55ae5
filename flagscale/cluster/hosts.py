"""Which hosts the job runs on, in rank order, and how many ranks each of them has."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from flagscale.cluster.hostfile import HostLine, read_hostfile
from flagscale.config.locate import Locator
from flagscale.config.schema import Runner
from flagscale.errors import Problem, UserError
from flagscale.job import Host

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def is_local(name: str) -> bool:
    """Whether a host name means the host this runs on."""
    return name in (*LOCAL_NAMES, socket.gethostname())


def select_hosts(
    runner: Runner, platform: str, devices: int, shares_devices: bool, locator: Locator | None = None
) -> tuple[Host, ...]:
    """Return the hosts of the job.

    Without a hostfile that is this host alone, with `devices` slots unless `nproc_per_node` says otherwise.

    Raises:
        UserError: a bad hostfile, fewer hosts or devices than asked for.
    """
    where = (locator or Locator()).where
    ranks = runner.nproc_per_node if isinstance(runner.nproc_per_node, int) else None
    if runner.hostfile:
        lines = _hostfile_lines(runner.hostfile, where("experiment.runner.hostfile"))
        source = f"{os.path.relpath(runner.hostfile)} has {len(lines)}"
    else:
        lines = (HostLine("localhost", devices if ranks is None else ranks),)
        source = "there is no hostfile"
        if problem := _device_problem(ranks, platform, devices, shares_devices):
            raise UserError([Problem(problem.what, where(problem.where), problem.hint)])
    wanted = runner.nnodes or len(lines)
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


def _device_problem(ranks: int | None, platform: str, devices: int, shares_devices: bool) -> Problem | None:
    if ranks is None and devices < 1:
        what = f"no {platform} device on this host"
        return Problem(what, "experiment.runner.platform", "set experiment.runner.platform=cpu")
    if ranks is not None and ranks > devices and not shares_devices:
        what = f"nproc_per_node is {ranks}, but this host has {devices} {platform} devices"
        hint = "lower it and the parallel degrees, or set experiment.runner.platform=cpu"
        return Problem(what, "experiment.runner.nproc_per_node", hint)
    return None
