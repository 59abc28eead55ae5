"""One short function per action; each returns the exit code that README promises.

They are registered in `flagscale.registry`; `estimate` and `auto_tune` are in `estimates` and `tuning`. A
third party adds one by the entry-point group `flagscale.actions`: a function of a `Request` that returns an
exit code.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from flagscale import registry
from flagscale.config.command import Request, load_command_keys, load_run_location
from flagscale.errors import UserError
from flagscale.run.rundir import RunDir
from flagscale.run.tuner_dir import TunerDir
from flagscale.runners.base import JobRunner, runner_of
from flagscale.start import prepared_job, run_in_foreground, start_job, stop_job
from flagscale.status.log_tail import LogTail
from flagscale.status.model import status_json
from flagscale.status.text import plan_text, status_text
from flagscale.status.watch import current_status, statuses, watch_job
from flagscale.values import LaunchPlan

if TYPE_CHECKING:
    from flagscale.estimates.job import ShortEstimate
    from flagscale.plan.prepare import Prepared


def run(request: Request) -> int:
    """Start the job in the background and confirm that every host runs it, or that it is queued.

    If the runner keeps `run` in the foreground, wait for the job: a platform frees the host afterwards.
    """
    return start_job(prepared_job(request))


def test(request: Request) -> int:
    """Run the job in the foreground and show its progress until it ends; Ctrl-C stops it on all hosts."""
    return run_in_foreground(prepared_job(request))


def dryrun(request: Request) -> int:
    """Print the configuration and scripts that `run` would use; touch no host and write nothing.

    This host need not have the job's devices. `output=manifest` prints the same job for Kubernetes.
    """
    if load_command_keys(request.config).as_manifest:
        from flagscale.runners.kubernetes.manifest import manifest_text

        print(manifest_text(request), end="")
        return 0
    prepared = prepared_job(request, run_id="dryrun", only_plans=True)
    short = _short_estimate(prepared, request)
    print(plan_text(prepared.plan, prepared.config, () if short.lacks_chip else short.lines))
    return 0


def check(request: Request) -> int:
    """Perform every check, including those that ask the hosts, and print each result."""
    prepared = prepared_job(request, run_id="check")
    results = runner_of(prepared.plan).check(prepared)
    short = _short_estimate(prepared, request)
    for result in results:
        grade = "ok    " if result.ok else "warn  " if result.is_advice else "FAILED"
        print(f"{grade}  {result.host}  {result.text}")
    for grade, text in (("ok    ", short.line), ("warn  ", short.warning)):
        if text:
            print(f"{grade}  configuration  {text}")
    return 0 if all(result.ok or result.is_advice for result in results) else 1


def query(request: Request) -> int:
    """Print the status once or, with follow=true, until the job ends."""
    keys = load_command_keys(request.config)
    as_json, watch = keys.as_json, keys.follow
    if (tuner := _tuner(request)).is_held():
        return _query_tuner(tuner, as_json=as_json, watch=watch)
    plan = _recorded(request, or_trial=False, quiet=tuner.state.exists())
    if plan is None and tuner.state.exists():
        return _query_tuner(tuner, as_json=as_json, watch=False)
    if plan is None:
        if as_json:
            print(json.dumps({"phase": "none", "reason": "nothing was started here"}))
        return 3
    if watch and not as_json:
        status = watch_job(plan)
    elif watch:
        for status in statuses(plan, _complain):
            if not status.ended:
                print(json.dumps(status_json(status)), flush=True)
    else:
        status = current_status(plan)
    print(json.dumps(status_json(status)) if as_json else status_text(status))
    return status.exit_code


def _query_tuner(files: TunerDir, *, as_json: bool, watch: bool) -> int:
    """Print what the tuner of a run directory does or has found; with `watch`, until it ends."""
    from flagscale.tuning import command

    shown = None
    while (status := command.status_json(files)) is not None:
        if status != shown:
            print(json.dumps(status) if as_json else command.status_text(status), flush=True)
        shown = status
        if not watch or status["state"] != "tuning":
            return 0 if status["state"] == "tuning" or (status["state"] == "ended" and status["best"]) else 1
        time.sleep(1)
    starting = {"state": "tuning", "reason": "it is starting"}
    print(json.dumps(starting) if as_json else "a tuner is starting")
    return 0


def logs(request: Request) -> int:
    """Print the output of the newest run's hosts (while a tuner runs, of its trial); with follow=true,
    continue until it ends.
    """
    watch = load_command_keys(request.config).follow
    plan = _recorded(request)
    if plan is None:
        return 3
    tail = LogTail(plan)
    tail.skip_earlier_runs()
    for status in statuses(plan, _complain) if watch else ():
        tail.plan = status.plan
        for line in tail.lines(last=status.ended):
            print(line, flush=True)
    if not watch:
        for line in tail.lines(last=True):
            print(line)
    for host, trouble in tail.troubles.items():
        _complain(f"{host.name}: its log cannot be read: {trouble}")
    return 1 if tail.troubles else 0


def stop(request: Request) -> int:
    """End every process of the run on every host, and the tuner if one runs here; safe to repeat."""
    tuner = _tuner(request)
    code = _stop_tuner(request, tuner) if tuner.state.exists() or tuner.is_held() else 0
    plan = _recorded(request, or_trial=False, quiet=tuner.state.exists())
    return code if plan is None else max(code, stop_job(plan))


def checkpoints(request: Request) -> int:
    """Print the checkpoints of a training: which are complete, which are kept, and which a run would load."""
    from flagscale.status.checkpoints import checkpoints_json, checkpoints_text, lists_of

    lists = lists_of(request)
    for directory, listed in lists.items():
        if listed is None:
            _complain(f"no checkpoints: {directory} does not exist on this host")
    found = {directory: listed for directory, listed in lists.items() if listed is not None}
    if load_command_keys(request.config).as_json:
        print(json.dumps({"directories": [checkpoints_json(*one) for one in found.items()]}))
    elif found:
        print("\n".join(checkpoints_text(*one) for one in found.items()))
    return 0 if found else 3


def _tuner(request: Request) -> TunerDir:
    return TunerDir.of(load_run_location(request.config, request.source_map).exp_dir)


def _stop_tuner(request: Request, files: TunerDir) -> int:
    """End the tuner of a run directory with its trial, or the trial of a tuner that died."""
    from flagscale.tuning import command

    if files.is_held():
        if command.request_stop(files):
            print("the tuner has ended, and its trial with it")
            return 0
        _complain(f"error: the tuner has not ended within {command.STOP_WITHIN:g} s; its trial is ended now")
    plan = _trial_plan(request, files)
    return stop_job(plan) if plan else 0


def _trial_plan(request: Request, files: TunerDir) -> LaunchPlan | None:
    """Return the plan of the trial that runs, or that was running when its tuner died."""
    from flagscale.tuning.command import newest_trial

    number = newest_trial(files)
    return RunDir(_share(request, files.trial(number).path)).read_plan() if number else None


def _short_estimate(prepared: Prepared, request: Request) -> ShortEstimate:
    from flagscale.estimates.job import short_estimate

    chip = load_command_keys(request.config).chip
    return short_estimate(prepared.job, prepared.experiment, chip, request.source_map)


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _recorded(request: Request, *, or_trial: bool = True, quiet: bool = False) -> LaunchPlan | None:
    """Return the plan of the newest start; if there is none, print which folder was searched unless `quiet`.

    `or_trial`: while a tuner runs here, the plan of its trial instead.
    """
    if or_trial and (tuner := _tuner(request)).is_held() and (plan := _trial_plan(request, tuner)):
        return plan
    run_dir = _share(request, load_run_location(request.config, request.source_map).exp_dir)
    plan = RunDir(run_dir).read_plan()
    if plan is None and not quiet:
        _complain(f"nothing was started in {run_dir}{_trials_of(_tuner(request))}")
    return plan


def _trials_of(tuner: TunerDir) -> str:
    """Return where the runs of a tuner that has ended are; "" if there was none."""
    trials = f"experiment.exp_dir={tuner.path}/task_N"
    return f"; for a trial of its tuner, use {trials}" if tuner.state.exists() else ""


def _share(request: Request, folder: Path) -> Path:
    """Return where this host's share of a run in a folder is.

    The plan names the runner that started it. The configured one only says where the plan is, so without it
    (misspelt, uninstalled) the plan is searched for in the folder itself.
    """
    location = load_run_location(request.config, request.source_map)
    where = request.source_map.where("experiment.runner.type")
    try:
        runner: JobRunner = registry.load("runners", location.runner, where)
        return runner.rules.share(folder, location.node_rank, os.environ).run_dir
    except UserError as error:
        _complain("\n".join(f"note: {problem}" for problem in error.problems))
    except Exception as error:  # a bug in its package must not prevent a stop
        _complain(f"note: {where}: the runner `{location.runner}` raises {type(error).__name__}: {error}")
    return folder
