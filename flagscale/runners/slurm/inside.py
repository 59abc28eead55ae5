"""Start a job inside an allocation of Slurm, from a shell or a script that has one."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from flagscale.plan.render import scripts
from flagscale.remote import launcher
from flagscale.remote.launcher import HostStatus, OnProgress
from flagscale.run.machine import is_local
from flagscale.run.rundir import RunDir
from flagscale.run.state import Reply, read_state
from flagscale.runners.base import earlier_job
from flagscale.runners.slurm import ledger
from flagscale.runners.slurm.allocation import Allocation, addresses
from flagscale.runners.slurm.commands import SlurmError
from flagscale.runners.slurm.ledger import Begin, End, Ledger
from flagscale.runners.slurm.questions import ask_step
from flagscale.runners.slurm.step import find_steps, start_step, wait_started
from flagscale.values import Host, LaunchPlan

if TYPE_CHECKING:
    from flagscale.plan.prepare import Prepared
    from flagscale.remote.preflight import CheckResult, Way

_ENDS: tuple[End, ...] = ("failed", "stopped", "finished")
"""How a run ends as a whole if its hosts end differently: the first one counts."""

_FIRST_PORT, _JOBS = 10000, 9000
"""Below the ports that Linux gives to connections (from 32768)."""


def check_inside(prepared: Prepared, here: Allocation) -> list[CheckResult]:
    """Check everything that the job needs on every host, except whether they reach each other."""
    from flagscale.remote.preflight import ask_hosts

    plan = prepared.plan
    packages = prepared.engine.distributions
    survey = ask_hosts(prepared.experiment, prepared.job, plan, packages, is_check=True, way=_way(plan, here))
    return list(survey.results)


def require_inside(prepared: Prepared, here: Allocation) -> LaunchPlan:
    """Return the plan with the addresses and ports at which its hosts meet.

    Raises:
        HostError: a host is not ready.
        FlagScaleError: an earlier job still runs in the run directory, or Slurm does not answer.
    """
    from flagscale.remote.preflight import require_ready

    plan, run_dir = prepared.plan, RunDir(Path(prepared.plan.exp_dir))
    known = ledger.read(run_dir)
    is_submission = known is not None and known.is_ours and known.job_id == here.job_id
    if prepared.job.services and not is_submission:
        # Otherwise the servers of an earlier job would be reported as unknown processes that use the ports.
        launcher.refuse_if_running(run_dir, plan, _earlier_run)
    packages = prepared.engine.distributions
    rendezvous = require_ready(prepared.experiment, prepared.job, plan, packages, _way(plan, here))
    return prepared.plan_at(rendezvous)


def start_inside(prepared: Prepared, plan: LaunchPlan, here: Allocation, done: OnProgress | None) -> str:
    """Start the plan as a step of the allocation, on all of its hosts or on none of them.

    The step ends with the allocation, and the allocation outlives the step.
    """
    from flagscale.plan.placement import secrets

    run_dir = RunDir(Path(plan.exp_dir))
    own = launcher.with_channel_secret(plan, secrets(prepared.job, prepared.experiment))
    job, earlier = here.job, run_dir.read_plan()
    names = tuple(host.name for host in plan.hosts)
    with launcher.recorded(plan, scripts(plan), prepared.config, own, _earlier_run):
        _close_begin(run_dir, earlier)
        ledger.record_job(
            run_dir,
            Ledger(
                cluster=os.environ.get("SLURM_CLUSTER_NAME", ""),
                job_id=here.job_id,
                user=job.user,
                name=job.name,
                submitted=job.submit or 0.0,
                step=plan.run_id,
                is_ours=False,
                components=here.components,
            ),
        )
        ledger.record_begin(run_dir, Begin(here.job_id, here.restarts, plan.run_id, names, time.time()))
        try:
            wait_started(plan, start_step(plan, here), done)
        except BaseException as error:
            ledger.record_end(run_dir, plan.run_id, "failed", " ".join(str(error).split()))
            raise
        finally:
            run_dir.forget_secrets(plan.hosts)
    return f"  as step {plan.run_id} of Slurm's job {here.job_id}"


def _earlier_run(plan: LaunchPlan) -> tuple[str, Sequence[HostStatus]]:
    """Return what `earlier_job` does, but a run whose step has ended is over, whatever its hosts recorded.

    With cgroups, Slurm also kills the guard of a host whose supervisor was killed, and no end is recorded.
    """
    known = ledger.read(RunDir(Path(plan.exp_dir)))
    if known and not known.is_ours and known.step == plan.run_id:
        with suppress(SlurmError):
            if not find_steps(known.job_id, known.step):
                return "", ()
    return earlier_job(plan)


def _close_begin(run_dir: RunDir, earlier: LaunchPlan | None) -> None:
    """Record how the run that ended before this one did: no program waits for a run inside an allocation."""
    known = ledger.read(run_dir)
    if earlier is None or known is None:
        return
    states = [read_state(run_dir.state(host), earlier.run_id) for host in earlier.hosts]
    ended = max((state.ended or 0.0 for state in states if state), default=0.0)
    for end in _ENDS:
        if any(state and state.phase == end for state in states):
            ledger.record_end(run_dir, earlier.run_id, end, ended=ended)


def _way(plan: LaunchPlan, here: Allocation) -> Way:
    """Return how the hosts of an allocation are asked, and where they are."""
    from flagscale.remote.preflight import Way

    def ask(questions: Mapping[Host, list[str]], seconds: float) -> Mapping[Host, Reply]:
        return ask_step(plan, here, questions, seconds)

    return Way(_addresses(plan), ask, _port(here.job_id))


def _port(job_id: str) -> int:
    """Return the port of a job's rendezvous: jobs that share a host and begin together find both free."""
    return _FIRST_PORT + 2 * (int(job_id) % _JOBS)


def _addresses(plan: LaunchPlan) -> dict[int, str]:
    """Return the address of each host by rank, as the other hosts resolve it.

    A host may resolve its own name to a loopback address, at which no other host would find it.
    """
    from flagscale.node.network import own_address, resolved  # imports psutil

    known = addresses([host.name for host in plan.hosts])
    found = {host.rank: resolved(known[host.name]) for host in plan.hosts}
    here = os.uname().nodename
    for host in plan.hosts:
        is_here = host.name in (here, here.partition(".")[0]) or is_local(found[host.rank])
        others = [found[other.rank] for other in plan.hosts if other != host]
        if is_here and others and found[host.rank] != known[host.name]:
            found[host.rank] = own_address(others[0])
    return found
