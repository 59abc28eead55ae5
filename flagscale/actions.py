"""One short function an action; each returns the exit code that README promises."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping

from flagscale.config.load import load_command_keys, load_exp_dir
from flagscale.follow import LogTail, current_status, follow
from flagscale.job import LaunchPlan
from flagscale.launch import launcher
from flagscale.launch.place import secrets
from flagscale.launch.rundir import RunDir
from flagscale.preflight import preflight, require_free_port
from flagscale.prepare import Prepared, Request, prepare
from flagscale.report import plan_text, started_text, status_json, status_text

_FOLLOW_SECONDS = 1.0


def run(request: Request) -> int:
    """Start the job in the background and confirm that every host runs it."""
    print(started_text(_start(request)))
    return 0


def test(request: Request) -> int:
    """Run the job in the foreground: progress until it ends; Ctrl-C stops it on all hosts."""
    plan = _start(request)
    print(started_text(plan), flush=True)
    try:
        status = follow(plan)
    except KeyboardInterrupt:
        print("\nstopping the job ...", flush=True)
        _stop(plan)
        return 130
    print(status_text(status))
    code = next((host.state.exit_code for host in status.hosts if host.state and host.state.exit_code), 0)
    return code if code > 0 else status.exit_code


def dryrun(request: Request) -> int:
    """Print the configuration and scripts that `run` would use; touch no host and write nothing."""
    prepared = _prepare(request, run_id="dryrun")
    print(plan_text(prepared.plan, prepared.config))
    return 0


def check(request: Request) -> int:
    """Perform every check, also those that ask the hosts, and tell the outcome of each."""
    prepared = _prepare(request, run_id="check")
    outcomes = preflight(prepared.experiment, prepared.job, prepared.engine.distribution)
    for outcome in outcomes:
        print(f"{'ok    ' if outcome.ok else 'FAILED'}  {outcome.host}  {outcome.text}")
    return 0 if all(outcome.ok for outcome in outcomes) else 1


def query(request: Request) -> int:
    """Print one status (or, with +follow=true, watch until the job ends)."""
    as_json, watch = load_command_keys(request.config)
    plan = _recorded(request)
    if plan is None:
        return 3
    if watch and not as_json:
        status = follow(plan)
    else:
        status = current_status(plan)
        while watch and not status.ended:
            print(json.dumps(status_json(status)), flush=True)
            time.sleep(_FOLLOW_SECONDS)
            status = current_status(plan)
    print(json.dumps(status_json(status)) if as_json else status_text(status))
    return status.exit_code


def logs(request: Request) -> int:
    """Print what the newest run's hosts printed; with +follow=true go on until the job ends."""
    _, watch = load_command_keys(request.config)
    plan = _recorded(request)
    if plan is None:
        return 3
    tail = LogTail(plan)
    tail.skip_earlier_runs()
    while True:
        ended = not watch or current_status(plan).ended
        for line in tail.lines(last=ended):
            print(line, flush=watch)
        if ended:
            return 0
        time.sleep(_FOLLOW_SECONDS)


def stop(request: Request) -> int:
    """End every process of the run on every host; again is harmless."""
    plan = _recorded(request)
    return 0 if plan is None else _stop(plan)


ACTIONS: Mapping[str, Callable[[Request], int]] = {
    "run": run,
    "test": test,
    "dryrun": dryrun,
    "check": check,
    "query": query,
    "logs": logs,
    "stop": stop,
}


def _prepare(request: Request, run_id: str | None = None) -> Prepared:
    prepared = prepare(request, run_id)
    for notice in prepared.notices:
        print(f"note: {notice}", file=sys.stderr)
    return prepared


def _start(request: Request) -> LaunchPlan:
    prepared = _prepare(request)
    require_free_port(prepared.experiment, prepared.job, prepared.engine.distribution)
    launcher.start(prepared.plan, prepared.config, secrets(prepared.job, prepared.experiment))
    return prepared.plan


def _stop(plan: LaunchPlan) -> int:
    replies = launcher.stop(plan)
    for host, reply in replies.items():
        print(f"host {host.rank}  {host.name}  {reply['message']}")
    return 0 if all(reply["ok"] for reply in replies.values()) else 1


def _recorded(request: Request) -> LaunchPlan | None:
    """The plan of the newest start; tells where it looked when there is none."""
    exp_dir = load_exp_dir(request.config)
    plan = RunDir(exp_dir).read_plan()
    if plan is None:
        print(f"nothing was started in {exp_dir}", file=sys.stderr)
    return plan
