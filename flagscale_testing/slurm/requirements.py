"""Reasons why a Slurm cluster cannot be made on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

from flagscale_testing.farm.sshd import find_program
from flagscale_testing.slurm.config import Proctrack

_PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "salloc", "scontrol", "setpriv", "unshare")
_FREEZER = Path("/sys/fs/cgroup/freezer")


@cache
def missing_for_cluster(proctrack: Proctrack = "linuxproc") -> str | None:
    """Return why a cluster cannot be made here, or None if it can."""
    if sys.platform != "linux":
        return "a Slurm cluster requires Linux"
    if absent := [name for name in _PROGRAMS if find_program(name) is None]:
        return f"not installed: {', '.join(absent)} (Debian's packages slurm-wlm and munge)"
    if os.getuid() != 0:
        return "only root can start the nodes of a Slurm cluster"
    trial = subprocess.run(
        ["unshare", "--mount", "--uts", "sh", "-c", "mount --bind /etc/hosts /etc/hosts && hostname n1"],
        capture_output=True,
        text=True,
    )
    if trial.returncode:
        return f"nodes with names of their own cannot be made here: {trial.stderr.strip()}"
    if proctrack == "cgroup" and not os.access(_FREEZER, os.W_OK):
        return f"the machine has no cgroup v1 to write to ({_FREEZER})"
    return None
