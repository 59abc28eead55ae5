"""Start srun with one task per host of a plan, each of which gets all that the job has on its host."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from flagscale.run.env import import_path
from flagscale.runners.slurm.allocation import Allocation
from flagscale.runners.slurm.commands import SlurmMissing
from flagscale.values import LaunchPlan

_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS")
"""The only variables of Slurm that a step inherits; the others repeat options of the job."""
_WHOLE_HOSTS = (
    "--quiet",
    "--ntasks-per-node=1",
    "--mem=0",
    "--cpu-bind=none",
    "--overlap",
    "--export=ALL",
    "--no-kill",
    "--kill-on-bad-exit=0",
    "--wait=0",
)
"""A task gets all that the job has on its host. If another task or host has failed, it runs on, because the
supervisors decide what happens then."""


def srun(
    plan: LaunchPlan, allocation: Allocation, name: str, words: Sequence[str], output: BinaryIO
) -> subprocess.Popen[bytes]:
    """Start srun, without a terminal and in a session of its own, so that Ctrl-C does not reach it.

    Raises:
        SlurmMissing: it cannot be run here.
    """
    options = [f"--jobid={allocation.job_id}", f"--job-name={name}", *_WHOLE_HOSTS]
    parts = [[*options, *where, *words] for where in _where(plan, allocation)]
    command = [word for part in parts for word in (":", *part)][1:]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name in _KEPT or not name.startswith(("SLURM", "SRUN_"))
    }
    if plan.source_root:
        environment["PYTHONPATH"] = import_path(plan.source_root, environment.get("PYTHONPATH", ""))
    try:
        return subprocess.Popen(
            ["srun", *command],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise SlurmMissing(f"`srun` cannot be run: {error.strerror}") from None


def _where(plan: LaunchPlan, allocation: Allocation) -> Iterator[list[str]]:
    """Yield the options that say where a step runs, once per component of the allocation.

    Without numbers of its own, srun starts one task on each component. The tasks are numbered over all.
    """
    wanted = {host.name for host in plan.hosts}
    groups: dict[int, list[str]] = {}
    for host in allocation.hosts:
        if host.name in wanted:
            groups.setdefault(host.group, []).append(host.name)
    for group, names in groups.items():
        component = [f"--het-group={group}"] if allocation.components else []
        yield [*component, f"--nodes={len(names)}", f"--ntasks={len(names)}", f"--nodelist={','.join(names)}"]
