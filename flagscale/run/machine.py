"""Which machine this is, and what the hosts of a plan are called from here.

A job without a hostfile runs on `localhost`, and its run directory may lie where other machines see it, too:
for those, `localhost` is the machine on which the job was started.
"""

from __future__ import annotations

import os
from functools import cache

from flagscale.linux import boot
from flagscale.values import LOCAL_NAMES, Host, LaunchPlan, Machine


def this_machine() -> Machine:
    """Return this one, as a plan records it."""
    return Machine(os.uname().nodename, boot())


def elsewhere(plan: LaunchPlan, host: Host) -> Machine | None:
    """Return the other machine that a host called `localhost` in the plan is; None where it is this one.

    It is this one where the name is the same, or the boot: a machine may be renamed, or started anew.
    """
    there, here = plan.started_on, this_machine()
    is_other = there is not None and here.name != there.name and here.boot != there.boot
    return there if host.is_localhost and is_other else None


def name_from_here(plan: LaunchPlan, host: Host) -> str:
    """Return the name by which this machine reaches a host of the plan."""
    there = elsewhere(plan, host)
    return there.name if there else host.name


def is_local(name: str) -> bool:
    """Whether a host name, or an address, means the host this runs on."""
    return name in LOCAL_NAMES or name in _own_names()


@cache
def _own_names() -> frozenset[str]:
    import psutil  # here, because a session that starts a job does without it

    interfaces = psutil.net_if_addrs().values()
    return frozenset({os.uname().nodename, *(known.address for one in interfaces for known in one)})
