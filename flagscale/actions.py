"""One short function per action; each returns the exit code that README promises.

They are registered in `flagscale.registry`. A third party adds one by the entry-point group
`flagscale.actions`: a function of a `Request` that returns an exit code.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from flagscale import registry
from flagscale.config.command import CommandOptions, Request, load_command_keys, load_run_location
from flagscale.config.secrets import masks
from flagscale.errors import FlagScaleError, Problem, UserError
from flagscale.files import write_atomic
from flagscale.remote import launcher
from flagscale.run.rundir import RunDir
from flagscale.run.tuner_dir import TunerDir
from flagscale.runners.base import JobRunner, queued, runner_of
from flagscale.status.log_tail import LogTail
from flagscale.status.model import JobStatus, status_json, taking_part
from flagscale.status.services import is_given_up, servers
from flagscale.status.text import plan_text, started_text, status_text
from flagscale.status.watch import (
    counted,
    current_status,
    interrupted_once,
    statuses,
    watch_job,
    watch_services,
)
from flagscale.values import LaunchPlan

if TYPE_CHECKING:
    from flagscale.estimates.job import ShortEstimate
    from flagscale.plan.prepare import Prepared


def run(request: Request) -> int:
    """Start the job in the background and confirm that every host runs it, or that it is queued.

    If the runner keeps `run` in the foreground, wait for the job: a platform frees the host afterwards.
    """
    return _run(_prepare(request))


def _run(prepared: Prepared) -> int:
    if runner_of(prepared.plan).rules.foreground:
        return _run_in_foreground(prepared)
    plan, note = _start(prepared)
    _print_started(plan, note)
    return _until_ready(plan) if servers(plan) else 0


def auto_tune(request: Request) -> int:
    """Try layouts of the job in short trials, and start the best one in `exp_dir` (`control.run_best`).

    For hosts of several types, the planner chooses meshes without trials.
    """
    from flagscale.tuning.begin import tunable
    from flagscale.tuning.loop import tune  # here: it needs all that plans and starts jobs
    from flagscale.tuning.mixed import choose_meshes, has_mixed_hosts

    if has_mixed_hosts(request):
        is_run, winner = _runs_best(request), choose_meshes(request, _say)
        return _run(_prepare(winner)) if is_run else 0
    request = tunable(request)
    prepared = _prepare(request, run_id="auto_tune")
    launcher.refuse_if_running(RunDir(Path(prepared.plan.exp_dir)), prepared.plan, queued)
    with interrupted_once():
        try:
            result = tune(request, prepared, _say)
        except KeyboardInterrupt:
            print("\ninterrupted: the trial has ended, and the same command continues", flush=True)
            return 130
    if result.is_stopped or result.winner is None:
        print(result.reason if result.is_stopped else "error: no trial was measured", file=sys.stderr)
        return 1
    if prepared.experiment.auto_tuner.control.run_best:
        return _run(_prepare(result.winner))
    folder, name = TunerDir.of(prepared.experiment.exp_dir).best.parent, "best"
    path = shlex.quote(str(folder))
    print(f"start it with: python run.py --config-path {path} --config-name {name} action=run")
    return 0


def test(request: Request) -> int:
    """Run the job in the foreground and show its progress until it ends; Ctrl-C stops it on all hosts."""
    return _run_in_foreground(_prepare(request))


def _run_in_foreground(prepared: Prepared) -> int:
    with interrupted_once():
        plan, note = _start(prepared)
        try:
            _print_started(plan, note)
            status = watch_job(plan)
        except KeyboardInterrupt:
            print("\nstopping the job ...", flush=True)
            _stop(plan)
            return 130
        except BrokenPipeError:  # `... action=test | head`: as with Ctrl-C, the job ends with its command
            runner_of(plan).stop(plan)
            raise
    print(status_text(status))
    hosts = taking_part(status.hosts)
    code = next((host.state.exit_code for host in hosts if host.state and host.state.exit_code), 0)
    return code if code > 0 else status.exit_code


def dryrun(request: Request) -> int:
    """Print the configuration and scripts that `run` would use; touch no host and write nothing.

    This host need not have the job's devices.
    """
    prepared = _prepare(request, run_id="dryrun", only_plans=True)
    chip = load_command_keys(request.config).chip
    short = _short_estimate(prepared, chip, request)
    print(plan_text(prepared.plan, prepared.config, () if short.lacks_chip else short.lines))
    return 0


def check(request: Request) -> int:
    """Perform every check, including those that ask the hosts, and print each result."""
    prepared = _prepare(request, run_id="check")
    results = runner_of(prepared.plan).check(prepared)
    chip = load_command_keys(request.config).chip
    short = _short_estimate(prepared, chip, request)
    for result in results:
        grade = "ok    " if result.ok else "warn  " if result.is_advice else "FAILED"
        print(f"{grade}  {result.host}  {result.text}")
    for grade, text in (("ok    ", short.line), ("warn  ", short.warning)):
        if text:
            print(f"{grade}  configuration  {text}")
    return 0 if all(result.ok or result.is_advice for result in results) else 1


def estimate(request: Request) -> int:
    """Print what the job needs and how fast it will be; touch no host and start nothing.

    Neither the job's hosts nor their chips need to exist.
    """
    from flagscale.estimates.as_json import estimate_tree
    from flagscale.estimates.job import estimate_of
    from flagscale.estimates.picture import picture
    from flagscale.estimates.text import estimate_text

    keys = load_command_keys(request.config)
    if keys.plan:
        return _plan(request, keys)
    job, found = estimate_of(request, keys.chip)
    if keys.picture:
        _write("picture", keys.picture, picture(job.name, found))
    print(json.dumps(estimate_tree(job, found)) if keys.as_json else estimate_text(job, found))
    return 0


def _plan(request: Request, keys: CommandOptions) -> int:
    """Print the best layout for the job's hosts and why it is that, and write it as a task file."""
    from flagscale.estimates.auto_plan import auto_plan
    from flagscale.estimates.picture import picture
    from flagscale.estimates.plan_text import auto_plan_text, auto_plan_tree, hostfile_of

    plan = auto_plan(request, keys.chip)
    if keys.picture:
        _write("picture", keys.picture, picture(plan.job.name, plan.estimate))
    if keys.task_file:
        _write("task_file", keys.task_file, plan.task_file)
        if not plan.takes_all:
            _write("task_file", hostfile_of(keys.task_file), plan.hostfile)
    print(json.dumps(auto_plan_tree(plan)) if keys.as_json else auto_plan_text(plan, keys.task_file))
    return 0


def _write(key: str, path: Path, text: str) -> None:
    """Write a file that a key of the command names. Raises UserError if that is not possible."""
    try:
        write_atomic(path, text)
    except OSError as error:
        raise UserError([Problem(f"{path} cannot be written: {error.strerror}", key)]) from None


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
    return code if plan is None else max(code, _stop(plan))


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
    trial = command.newest_trial(files)
    plan = RunDir(_share(request, trial)).read_plan() if trial else None
    return _stop(plan) if plan else 0


def _prepare(request: Request, run_id: str | None = None, *, only_plans: bool = False) -> Prepared:
    from flagscale.plan.prepare import prepare  # here: actions about a run that exists plan nothing

    prepared = prepare(request, run_id, only_plans=only_plans)
    for notice in prepared.notices:
        print(f"note: {notice}", file=sys.stderr)
    return prepared


def _short_estimate(prepared: Prepared, chip: str, request: Request) -> ShortEstimate:
    from flagscale.estimates.job import short_estimate

    return short_estimate(prepared.job, prepared.experiment, chip, request.source_map)


def _refuse_masks(prepared: Prepared) -> None:
    """Raise FlagScaleError for a secret of a recorded configuration, with which the job would fail later."""
    experiment = prepared.experiment
    trees = {"experiment.envs": experiment.envs.model_dump(), experiment.task.type: experiment.arguments}
    if found := [one for path, tree in trees.items() for one in masks(tree, path)]:
        given = " ".join(f"'{one}=${{oc.env:{one.rpartition('.')[2].upper()}}}'" for one in found)
        raise FlagScaleError(f"secrets are masked in the files that FlagScale writes; give them: {given}")


def _start(prepared: Prepared) -> tuple[LaunchPlan, str]:
    """Start or submit the job; return its plan and what its runner says about it."""
    _refuse_masks(prepared)
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


def _until_ready(plan: LaunchPlan) -> int:
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
            _stop(plan)
            return 130
    if is_up(status):
        return 0
    print(status_text(status), file=sys.stderr)
    if not status.ended and lacks_one(status):
        print("error: an instance ended before all of them were ready", file=sys.stderr)
    elif not status.ended:
        limit = plan.ready_timeout
        print(f"error: no answer within {limit:g} s (experiment.runner.ready_timeout)", file=sys.stderr)
    _stop(plan)
    return 1


def _runs_best(request: Request) -> bool:
    from flagscale.config.load import load_experiment

    experiment = load_experiment(request.config, request.source_map).experiment
    return experiment is not None and experiment.auto_tuner.control.run_best


def _say(line: str) -> None:
    print(line, flush=True)


def _complain(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _stop(plan: LaunchPlan) -> int:
    replies = runner_of(plan).stop(plan)
    for host, reply in replies.items():
        print(f"host {host.rank}  {host.name}  {reply['message']}")
    return 0 if all(reply["ok"] for reply in replies.values()) else 1


def _recorded(request: Request, *, or_trial: bool = True, quiet: bool = False) -> LaunchPlan | None:
    """Return the plan of the newest start; if there is none, print which folder was searched unless `quiet`.

    `or_trial`: while a tuner runs here, the plan of its trial instead.
    """
    if or_trial and (tuner := _tuner(request)).is_held():
        from flagscale.tuning import command

        trial = command.newest_trial(tuner)
        plan = RunDir(_share(request, trial)).read_plan() if trial else None
        if plan:
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
