"""Start a job as commands do: plan it, start it on its hosts, wait until it is up or has ended; stop it."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from flagscale.config.command import Request
from flagscale.errors import FlagScaleError
from flagscale.run.tuner_dir import TunerDir
from flagscale.runners.base import runner_of
from flagscale.status.model import JobStatus, taking_part
from flagscale.status.services import is_given_up, servers
from flagscale.status.text import started_text, status_text
from flagscale.status.watch import counted, interrupted_once, watch_job, watch_services
from flagscale.values import LaunchPlan

if TYPE_CHECKING:
    from flagscale.plan.prepare import Prepared


def prepared_job(request: Request, run_id: str | None = None, *, only_plans: bool = False) -> Prepared:
    """Return the job of a configuration after all checks, and print their notes."""
    from flagscale.plan.prepare import prepare  # here: actions about a run that exists plan nothing

    prepared = prepare(request, run_id, only_plans=only_plans)
    for notice in prepared.notices:
        print(f"note: {notice}", file=sys.stderr)
    return prepared


def start_job(prepared: Prepared) -> int:
    """Start a job in the background and confirm that every host runs it, or that it is queued.

    If the runner keeps `run` in the foreground, wait for the job: a platform frees the host afterwards.
    """
    if runner_of(prepared.plan).rules.foreground:
        return run_in_foreground(prepared)
    plan, note = _start(prepared)
    _print_started(plan, note)
    return until_ready(plan) if servers(plan) else 0


def run_in_foreground(prepared: Prepared) -> int:
    """Show the progress of a job until it ends; Ctrl-C stops it on all hosts."""
    with interrupted_once():
        plan, note = _start(prepared)
        try:
            _print_started(plan, note)
            status = watch_job(plan)
        except KeyboardInterrupt:
            print("\nstopping the job ...", flush=True)
            stop_job(plan)
            return 130
        except BrokenPipeError:  # `... action=test | head`: as with Ctrl-C, the job ends with its command
            runner_of(plan).stop(plan)
            raise
    print(status_text(status))
    hosts = taking_part(status.hosts)
    code = next((host.state.exit_code for host in hosts if host.state and host.state.exit_code), 0)
    return code if code > 0 else status.exit_code


def until_ready(plan: LaunchPlan) -> int:
    """Wait until all servers answer or the job is queued; stop the job if they do not answer in time."""
    deadline = time.monotonic() + plan.ready_timeout

    def is_up(status: JobStatus) -> bool:
        has_ended = any(state.phase in ("restarting", "failed") for _, state in status.services)
        return status.phase == "queued" or (status.phase == "running" and not has_ended)

    def lacks_one(status: JobStatus) -> bool:
        return any(is_given_up(state) for _, state in status.services)

    def is_enough(status: JobStatus) -> bool:
        return is_up(status) or lacks_one(status) or time.monotonic() > deadline

    with interrupted_once():
        try:
            status = watch_services(plan, is_enough)
        except KeyboardInterrupt:
            print("\nstopping the job ...", flush=True)
            stop_job(plan)
            return 130
    if is_up(status):
        return 0
    print(status_text(status), file=sys.stderr)
    if not status.ended and lacks_one(status):
        print("error: an instance ended before all of them were ready", file=sys.stderr)
    elif not status.ended:
        limit = plan.ready_timeout
        print(f"error: no answer within {limit:g} s (experiment.runner.ready_timeout)", file=sys.stderr)
    stop_job(plan)
    return 1


def stop_job(plan: LaunchPlan) -> int:
    """End every process of a job on every host, and print the answer of each."""
    replies = runner_of(plan).stop(plan)
    for host, reply in replies.items():
        print(f"host {host.rank}  {host.name}  {reply['message']}")
    return 0 if all(reply["ok"] for reply in replies.values()) else 1


def _start(prepared: Prepared) -> tuple[LaunchPlan, str]:
    """Start or submit the job; return its plan and what its runner says about it."""
    runner = runner_of(prepared.plan)
    if (tuner := TunerDir.of(prepared.experiment.exp_dir)).is_held():
        what = f"a tuner is running in {tuner.path}, and the job would take the devices from its trials"
        raise FlagScaleError(
            f"{what}; wait for it, end it with action=stop, or use another experiment.exp_dir"
        )
    plan = runner.require(prepared)
    with counted("starting", len(plan.nodes)) as done:
        note = runner.start(prepared, plan, done)
    return plan, note


def _print_started(plan: LaunchPlan, note: str) -> None:
    print(started_text(plan), flush=True)
    if note:
        print(note, flush=True)
