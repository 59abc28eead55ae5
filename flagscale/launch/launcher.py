"""Start, look at and stop a plan on all its hosts at once; one host's trouble never hides the others' outcome."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from flagscale import registry
from flagscale.cluster.hosts import is_local
from flagscale.errors import FlagScaleError, HostError, Problem, UserError
from flagscale.files import write_atomic
from flagscale.job import Host, LaunchPlan
from flagscale.launch.render import scripts
from flagscale.launch.rundir import RunDir
from flagscale.launch.transport import Transport
from flagscale.node.commands import Reply
from flagscale.node.state import HostState, from_dict

_MAX_PARALLEL = 64


@dataclass(frozen=True)
class HostStatus:
    """A host of a plan with its state; `state` is None where it has none, `trouble` says why it could not be asked."""

    host: Host
    state: HostState | None
    processes: int = 0
    trouble: str = ""


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
            run_dir.write_launch(plan, scripts(plan), config)
            if secrets:
                for node in plan.nodes:
                    write_atomic(run_dir.secrets(node.host), json.dumps(dict(secrets)), mode=0o600)
        except OSError as error:
            raise FlagScaleError(f"cannot write the run directory {plan.exp_dir}: {error.strerror}") from None
        try:
            replies = call_all(plan, "start")
        except KeyboardInterrupt:
            stop(plan)
            raise
        failed = {host: reply for host, reply in replies.items() if not reply["ok"]}
        if failed:
            stop(plan)
            outcomes = [Problem(reply["message"], host.name) for host, reply in replies.items()]
            raise HostError("the job did not start; hosts that had started were stopped again:", outcomes)


def refuse_if_running(run_dir: RunDir) -> None:
    """Raise a FlagScaleError if a job of this run directory still runs, on any of its hosts."""
    earlier = run_dir.read_plan()
    if earlier is None:
        return
    for found in status(earlier):
        if found.trouble or found.processes or (found.state and found.state.phase in ("starting", "running")):
            reason = found.trouble or f"run {earlier.run_id} is there with {found.processes} processes"
            raise FlagScaleError(
                f"a job still runs in {run_dir.path} ({found.host.name}: {reason}); stop it first, "
                "or use another experiment.exp_dir"
            )


def status(plan: LaunchPlan) -> list[HostStatus]:
    """Return the state of every host, in rank order."""
    found = []
    for host, reply in call_all(plan, "status").items():
        if reply.get("ok") is False:
            found.append(HostStatus(host, None, trouble=reply["message"]))
        else:
            alive = reply.pop("processes", 0)
            found.append(HostStatus(host, from_dict(reply) if reply else None, alive))
    return found


def stop(plan: LaunchPlan) -> dict[Host, Reply]:
    """End the run on every host; the reply of each says what happened there."""
    return call_all(plan, "stop")


def call_all(plan: LaunchPlan, verb: str) -> dict[Host, Reply]:
    """Perform a node command of this plan on all hosts in parallel; every host has a reply, in rank order."""
    return ask([node.host for node in plan.nodes], lambda host: [verb, plan.exp_dir, str(host.rank)])


def ask(hosts: list[Host], words_of: Callable[[Host], list[str]]) -> dict[Host, Reply]:
    """Perform a node command on hosts in parallel."""
    transports = {host: transport_for(host) for host in hosts}
    with ThreadPoolExecutor(min(_MAX_PARALLEL, len(hosts))) as pool:
        replies = pool.map(lambda host: transports[host].call(host, words_of(host)), hosts)
        return dict(zip(hosts, replies, strict=True))


def transport_for(host: Host) -> Transport:
    """Return how to reach a host; a UserError where this installation cannot."""
    if not is_local(host.name):
        hint = "this version starts jobs on this host only; name it `localhost` in the hostfile"
        raise UserError([Problem(f"no way to reach the host `{host.name}`", hint=hint)])
    transport: Transport = registry.load("transports", "local")()
    return transport
