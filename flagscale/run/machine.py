"""Identify this machine, and return the names by which it reaches the hosts of a plan.

A job without a hostfile runs on `localhost`, and other machines may see its run directory as well: for them,
`localhost` is the machine on which the job was started.
"""

from __future__ import annotations

import os
from functools import cache

from flagscale.linux import boot
from flagscale.values import LOCAL_NAMES, Host, LaunchPlan, Machine


def this_machine() -> Machine:
    """Return this machine as a plan records it."""
    return Machine(os.uname().nodename, boot())


def elsewhere(plan: LaunchPlan, host: Host) -> Machine | None:
    """Return the other machine that `localhost` in the plan stands for; None if it is this one.

    It is this one if the name or the boot is the same: a machine may be renamed or rebooted.
    """
    there, here = plan.started_on, this_machine()
    is_other = there is not None and here.name != there.name and here.boot != there.boot
    return there if host.is_localhost and is_other else None


def name_from_here(plan: LaunchPlan, host: Host) -> str:
    """Return the name by which this machine reaches a host of the plan."""
    there = elsewhere(plan, host)
    return there.name if there else host.name


def is_local(name: str) -> bool:
    """Return whether a host name or an address means this host."""
    return name in LOCAL_NAMES or name in _own_names()


@cache
def _own_names() -> frozenset[str]:
    import psutil  # here, because a session that starts a job does not need it

    interfaces = psutil.net_if_addrs().values()
    return frozenset({os.uname().nodename, *(known.address for one in interfaces for known in one)})
