"""A batch system in one file: jobs wait in the folder `$TOY_QUEUE` while it contains a file `busy`.

Each job has a ticket in it: RUN_ID.waiting, .started, .cancelled or .failed. The first process that renames a
waiting ticket decides whether the job starts.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from flagscale.config.schema import Section
from flagscale.errors import HostError, Problem
from flagscale.plan.hosts import named_hosts
from flagscale.plan.prepare import Prepared
from flagscale.plan.render import node_lines
from flagscale.plan.runner import RunnerRules
from flagscale.remote.launcher import HostStatus, OnProgress
from flagscale.remote.preflight import CheckResult
from flagscale.run.state import Reply
from flagscale.runners.base import JobRunner, RunReport, ask_hosts, recorded, stop_hosts
from flagscale.values import Host, LaunchPlan


class Options(Section):
    """The keys of `experiment.runner.options`."""

    label: str = "unnamed"
    """The name of the job's owner, as `query` shows it."""


def script_path(plan: LaunchPlan) -> Path:
    return Path(plan.exp_dir, "logs", "scripts", "queue.sh")


def scripts(plan: LaunchPlan) -> Mapping[Path, str]:
    """Return the job script: it waits for its turn, then starts the plan on this host."""
    waiting, started, failed = (f'"$TOY_QUEUE"/{shlex.quote(plan.run_id)}.{end}' for end in ENDINGS)
    lines = [
        "#!/usr/bin/env bash",
        f'while [ -e "$TOY_QUEUE/busy" ] && [ -e {waiting} ]; do sleep 0.1; done',
        f"mv {waiting} {started} || exit 0",
        "(",
        *node_lines(plan, plan.nodes[0], "start"),
        f") || mv {started} {failed}",
    ]
    return {script_path(plan): "\n".join(lines) + "\n"}


ENDINGS = ("waiting", "started", "failed")


def queue() -> Path:
    return Path(os.environ.get("TOY_QUEUE", "/nonexistent"))


def ticket(plan: LaunchPlan, ending: str) -> Path:
    return queue() / f"{plan.run_id}.{ending}"


def check(prepared: Prepared) -> list[CheckResult]:
    return [CheckResult(queue().is_dir(), "queue", f"$TOY_QUEUE is the folder {queue()}")]


def require(prepared: Prepared) -> LaunchPlan:
    if not queue().is_dir():
        hint = "set TOY_QUEUE to a folder"
        raise HostError("the job was not submitted:", [Problem(f"no queue in {queue()}", "queue", hint)])
    return prepared.plan


def start(prepared: Prepared, plan: LaunchPlan, done: OnProgress | None) -> str:
    with recorded(prepared, plan):
        options = Options.model_validate(prepared.experiment.runner.options)
        ticket(plan, "waiting").write_text(options.label)
        with Path(plan.exp_dir, "logs", "queue.output").open("ab") as output:
            subprocess.Popen(
                ["bash", str(script_path(plan))],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
    return f"  submitted to the queue in {queue()}"


def report(plan: LaunchPlan, count: bool) -> RunReport:
    # Check in the order in which a ticket changes, so that a change between two checks is not missed.
    with suppress(FileNotFoundError):
        reason = f"the queue is busy, {ticket(plan, 'waiting').read_text()} is waiting"
        return RunReport(plan, [HostStatus(host, None) for host in plan.hosts], "queued", reason)
    found = ask_hosts(plan, count)
    if any(host.state for host in found.hosts):
        return found
    if ticket(plan, "started").exists():
        return RunReport(plan, found.hosts, "queued", "starting")
    return RunReport(plan, found.hosts, "failed", f"it could not start: see {plan.exp_dir}/logs/queue.output")


def stop(plan: LaunchPlan) -> Mapping[Host, Reply]:
    try:
        ticket(plan, "waiting").rename(ticket(plan, "cancelled"))
    except FileNotFoundError:
        return stop_hosts(plan)
    # This records the end of the run and removes the files that the start would have used.
    return {host: {**reply, "message": "cancelled"} for host, reply in stop_hosts(plan).items()}


QUEUE = JobRunner(
    RunnerRules(
        "toy_queue",
        named_hosts,
        refused={"hostfile": "the queue runs jobs on its own host"},
        options=Options,
        scripts=scripts,
    ),
    check=check,
    require=require,
    start=start,
    report=report,
    stop=stop,
)
