"""`action=auto_tune`: tune a job, or choose its meshes, and start the best one."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from flagscale.config.command import Request
from flagscale.config.load import load_experiment
from flagscale.remote import launcher
from flagscale.run.rundir import RunDir
from flagscale.run.tuner_dir import TunerDir
from flagscale.runners.base import earlier_job
from flagscale.start import prepared_job, start_job
from flagscale.status.watch import interrupted_once
from flagscale.tuning.begin import tunable
from flagscale.tuning.loop import tune
from flagscale.tuning.mixed import choose_meshes, has_mixed_hosts


def auto_tune(request: Request) -> int:
    """Try layouts of the job in short trials, and start the best one in `exp_dir` (`control.run_best`).

    For hosts of several types, the planner chooses meshes without trials.
    """
    if has_mixed_hosts(request):
        is_run, winner = _runs_best(request), choose_meshes(request, _say)
        return start_job(prepared_job(winner)) if is_run else 0
    request = tunable(request)
    prepared = prepared_job(request, run_id="auto_tune")
    launcher.refuse_if_running(RunDir(Path(prepared.plan.exp_dir)), prepared.plan, earlier_job)
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
        return start_job(prepared_job(result.winner))
    folder, name = TunerDir.of(prepared.experiment.exp_dir).best.parent, "best"
    path = shlex.quote(str(folder))
    print(f"start it with: python run.py --config-path {path} --config-name {name} action=run")
    return 0


def _runs_best(request: Request) -> bool:
    experiment = load_experiment(request.config, request.source_map).experiment
    return experiment is not None and experiment.auto_tuner.control.run_best


def _say(line: str) -> None:
    print(line, flush=True)
