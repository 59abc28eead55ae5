"""Which hosts the job runs on, in rank order, and how many ranks each of them has."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from flagscale.cluster.hostfile import HostLine, read_hostfile
from flagscale.config.schema import Runner
from flagscale.errors import Problem, UserError
from flagscale.job import Host

LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


def is_local(name: str) -> bool:
    """Whether a host name means the host this runs on."""
    return name in (*LOCAL_NAMES, socket.gethostname())


def select_hosts(runner: Runner, platform: str, devices: int, shares_devices: bool) -> tuple[Host, ...]:
    """Return the hosts of the job.

    Without a hostfile that is this host alone, with `devices` slots unless `nproc_per_node` says otherwise.

    Raises:
        UserError: a bad hostfile, fewer hosts or devices than asked for.
    """
    lines = (
        read_hostfile(Path(runner.hostfile))
        if runner.hostfile
        else (HostLine("localhost", _local_slots(runner, platform, devices, shares_devices)),)
    )
    wanted = runner.nnodes or len(lines)
    if wanted > len(lines):
        source = f"{os.path.relpath(runner.hostfile)} has {len(lines)}" if runner.hostfile else "there is no hostfile"
        raise UserError(
            [Problem(f"nnodes is {wanted}, but {source}", "experiment.runner.nnodes", "add hosts to the hostfile")]
        )
    lines = lines[:wanted]
    problems = [
        Problem(
            f"`{line.name}` offers {line.slots} slots, nproc_per_node asks for {runner.nproc_per_node}",
            "experiment.runner.nproc_per_node",
        )
        for line in lines
        if isinstance(runner.nproc_per_node, int) and runner.nproc_per_node > line.slots
    ]
    if problems:
        raise UserError(problems)
    return tuple(
        Host(
            rank=rank,
            name=line.name,
            slots=runner.nproc_per_node if isinstance(runner.nproc_per_node, int) else line.slots,
            platform=line.type or platform,
        )
        for rank, line in enumerate(lines)
    )


def _local_slots(runner: Runner, platform: str, devices: int, shares_devices: bool) -> int:
    if not isinstance(runner.nproc_per_node, int):
        if devices < 1:
            raise UserError([Problem(f"no {platform} device on this host", "experiment.runner.platform")])
        return devices
    if runner.nproc_per_node > devices and not shares_devices:
        raise UserError(
            [
                Problem(
                    f"nproc_per_node is {runner.nproc_per_node}, but this host has {devices} {platform} devices",
                    "experiment.runner.nproc_per_node",
                    "lower it and the parallel degrees, or set experiment.runner.platform=cpu",
                )
            ]
        )
    return runner.nproc_per_node
