"""A runner whose trials end at once, with metrics by a formula: for tests of the tuner's loop."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagscale.plan.hosts import named_hosts
from flagscale.plan.prepare import Prepared
from flagscale.plan.runner import RunnerRules
from flagscale.remote.launcher import HostStatus, OnProgress
from flagscale.run.failure import Failure
from flagscale.run.rundir import RunDir
from flagscale.run.state import HostState, Reply
from flagscale.runners.base import JobRunner, RunReport
from flagscale.values import Host, LaunchPlan

STARTED: list[tuple[str, dict[str, Any]]] = []
"""Of each start: the name of the run directory, and the arguments of the engine."""
STOPPED: list[str] = []
"""The run directories of the runs that were stopped."""
ENDS: dict[tuple[int, int], str] = {}
"""By tensor and pipeline parallel degree: a message with which all ranks fail, `hang` or `interrupt`."""
_STATES: dict[str, HostState] = {}


def seconds(values: Mapping[str, Any]) -> float:
    """Return the time of a step: tensor parallelism costs most, larger micro-batches are faster."""
    tp, pp, micro = (
        int(values[name])
        for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size", "micro_batch_size")
    )
    return (1 + 0.5 * (tp - 1) + 0.1 * (pp - 1)) * (1 + 0.1 / micro)


def start(prepared: Prepared, plan: LaunchPlan, done: OnProgress | None) -> str:
    values = dict(prepared.job.arguments)
    STARTED.append((Path(plan.exp_dir).name, values))
    layout = (values["tensor_model_parallel_size"], values["pipeline_model_parallel_size"])
    end = ENDS.get(layout, "")
    if end == "interrupt":
        raise KeyboardInterrupt
    run_dir = RunDir(Path(plan.exp_dir))
    run_dir.path.mkdir(parents=True, exist_ok=True)
    run_dir.plan.write_text(plan.to_json())
    state = HostState(plan.run_id, "finished", started=time.time() - 1, exit_code=0)
    if end == "hang":
        state = state.changed(phase="running", exit_code=None)
    elif end:
        state = state.changed(phase="failed", exit_code=1, failure=Failure(end, rank=0))
    else:
        for iteration in range(1, values["train_iters"] + 1):
            record = {
                "iteration": iteration,
                "iteration_ms": 1000 * seconds(values) * (9 if iteration == 1 else 1),
                "mem_bytes": 1 << 30,
                "time": time.time(),
            }
            with Path(values["metrics_file"]).open("a") as file:
                file.write(json.dumps(record) + "\n")
    _STATES[plan.exp_dir] = state
    return ""


def report(plan: LaunchPlan, count: bool) -> RunReport:
    return RunReport(plan, [HostStatus(host, _STATES[plan.exp_dir]) for host in plan.hosts])


def stop(plan: LaunchPlan) -> Mapping[Host, Reply]:
    STOPPED.append(Path(plan.exp_dir).name)
    return {host: {"ok": True, "message": "stopped"} for host in plan.hosts}


PLAYED = JobRunner(
    RunnerRules("played", named_hosts),
    require=lambda prepared: prepared.plan,
    start=start,
    report=report,
    stop=stop,
)
