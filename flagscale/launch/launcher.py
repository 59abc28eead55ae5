"""Start, look at and stop a plan on all hosts at once; one host's trouble never hides the others' outcome."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flagscale import registry
from flagscale.cluster.hosts import is_local
from flagscale.errors import FlagScaleError, HostError, Problem, UserError
from flagscale.job import Host, LaunchPlan
from flagscale.launch.render import scripts
from flagscale.launch.rundir import RunDir
from flagscale.launch.transport import Transport
from flagscale.node.state import ENDED, HostState, Reply, from_dict

_MAX_PARALLEL = 64
_POLL = 0.1
_LEAVING = 2.0
"""Seconds that the supervisor of a run that has just ended may take to go."""


@dataclass(frozen=True)
class HostStatus:
    """A host of a plan; `state` is None where it has none, `trouble` says why it could not be asked."""

    host: Host
    state: HostState | None
    processes: int = 0
    trouble: str = ""

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to wait for; a host that could not be asked may have something."""
        return not self.trouble and (self.state is None or self.state.phase in ENDED)


def start(plan: LaunchPlan, config: str, secrets: Mapping[str, str]) -> None:
    """Record the plan in its run directory and start it on every host; all run, or none does.

    Raises:
        FlagScaleError: a job still runs in the run directory, or another launcher is starting one.
        HostError: a host could not start; the others were stopped again.
    """
    run_dir = RunDir(Path(plan.exp_dir))
    with run_dir.starting():
        refuse_if_running(run_dir)
        try:
            run_dir.write_launch(plan, scripts(plan), config, secrets)
            _start_hosts(plan)
        finally:
            for node in plan.nodes:
                with suppress(FileNotFoundError, NotADirectoryError):
                    run_dir.secrets(node.host).unlink()


def _start_hosts(plan: LaunchPlan) -> None:
    try:
        replies = call_all(plan, "start")
        if all(reply["ok"] for reply in replies.values()):
            return
    except BaseException:  # Ctrl-C, too: the whole job runs, or nothing of it
        stop(plan)
        raise
    problems = [Problem(reply["message"], host.name) for host, reply in replies.items()]
    for host, reply in stop(plan).items():
        if not reply["ok"]:
            problems.append(Problem(f"could not be stopped again: {reply['message']}", host.name))
    raise HostError("the job did not start; hosts that had started were stopped again:", problems)


def refuse_if_running(run_dir: RunDir) -> None:
    """Raise a FlagScaleError if a job of this run directory still runs, on any of its hosts."""
    earlier = run_dir.read_plan()
    if earlier is None:
        return
    deadline = time.monotonic() + _LEAVING
    while living := [host for host in status(earlier) if host.trouble or host.processes or not host.ended]:
        if all(host.ended for host in living) and time.monotonic() < deadline:
            time.sleep(_POLL)
            continue
        found = living[0]
        reason = found.trouble or f"run {earlier.run_id} has {found.processes} processes"
        raise FlagScaleError(
            f"a job still runs in {run_dir.path} ({found.host.name}: {reason}); stop it first, "
            "or use another experiment.exp_dir"
        )


def status(plan: LaunchPlan, *, count: bool = True) -> list[HostStatus]:
    """Return the state of every host, in rank order; cheaper without `count`, the number of processes."""
    found = []
    for host, reply in call_all(plan, "status", *(["count"] if count else [])).items():
        if reply.get("ok") is False:
            found.append(HostStatus(host, None, trouble=reply["message"]))
        else:
            living = reply.pop("processes")
            found.append(HostStatus(host, from_dict(reply) if reply else None, living))
    return found


def stop(plan: LaunchPlan) -> dict[Host, Reply]:
    """End the run on every host; the reply of each says what happened there."""
    return call_all(plan, "stop")


def call_all(plan: LaunchPlan, verb: str, *more: str) -> dict[Host, Reply]:
    """Perform a node command of this plan on all hosts in parallel; every host has a reply, in rank order."""
    return ask([node.host for node in plan.nodes], lambda host: [verb, plan.exp_dir, str(host.rank), *more])


def ask(hosts: list[Host], words_of: Callable[[Host], list[str]]) -> dict[Host, Reply]:
    """Perform a node command on hosts in parallel. Ctrl-C does not wait for hosts that have not answered."""
    transports = {host: transport_for(host) for host in hosts}
    pool = ThreadPoolExecutor(min(_MAX_PARALLEL, len(hosts)))
    try:
        replies = {host: pool.submit(transports[host].call, host, words_of(host)) for host in hosts}
        return {host: reply.result() for host, reply in replies.items()}
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def transport_for(host: Host) -> Transport:
    """Return how to reach a host; a UserError where this installation cannot."""
    if not is_local(host.name):
        hint = "this version starts jobs on this host only; name it `localhost` in the hostfile"
        raise UserError([Problem(f"no way to reach the host `{host.name}`", hint=hint)])
    transport: Transport = registry.load("transports", "local")()
    return transport
