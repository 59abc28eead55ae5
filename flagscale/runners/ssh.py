"""`runner.type: ssh`: runs on the hosts of a hostfile, or on this host, all started from here at once."""

from __future__ import annotations

from flagscale.plan.hosts import named_hosts
from flagscale.plan.runner import RunnerRules
from flagscale.runners.base import JobRunner

SSH = JobRunner(
    RunnerRules("ssh", named_hosts, refused={"node_rank": "ranks follow the order of the hostfile"})
)
