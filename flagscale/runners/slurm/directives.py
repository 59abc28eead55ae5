"""The batch script with which a job is submitted to Slurm: options of sbatch and one command."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path

from flagscale.config.schema import SlurmJob
from flagscale.errors import Problem, UserError
from flagscale.plan.render import one_line, pythonpath_lines
from flagscale.run.rundir import RunDir
from flagscale.runners.slurm.declared import limit_seconds
from flagscale.runners.slurm.keys import words
from flagscale.values import LaunchPlan

_MARGIN = 20.0
"""Seconds beyond the grace of the ranks, for the supervisors and the requeue itself."""


def scripts(plan: LaunchPlan) -> Mapping[Path, str]:
    """Return the batch script of a job by its path.

    Raises:
        UserError: a path cannot be written in a script of Slurm, or the time limit is shorter than the ranks
            need to save.
    """
    _require_time(plan)
    run_dir = RunDir(Path(plan.exp_dir))
    command = [plan.python, "-m", "flagscale.runners.slurm.batch", plan.exp_dir]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {_quoted(word)}" for word in options(plan)),
        f"# {one_line(plan.name)}: {len(plan.nodes)} hosts, {plan.world_size} ranks ({plan.layout})",
        "# The command starts one task per host with srun, waits for them, and requeues the job if asked to.",
        "export PYTHONUNBUFFERED=1",
        *pythonpath_lines(plan),
        f"exec {shlex.join(command)}",
    ]
    return {run_dir.slurm_script: "\n".join(lines) + "\n"}


def options(plan: LaunchPlan) -> Iterator[str]:
    """Yield the options of sbatch, component by component, as words of a command line."""
    job = SlurmJob.model_validate(plan.slurm)
    given = job.options()
    sizes = [(group.nnodes, group.options()) for group in job.groups] or [(len(plan.nodes), {})]
    for number, (hosts, own) in enumerate(sizes):
        if number:
            yield "hetjob"
        else:
            output = str(RunDir(Path(plan.exp_dir)).slurm_output).replace("%", "%%")
            yield f"--job-name={plan.run_id}"
            yield f"--chdir={plan.nodes[0].cwd}"
            yield f"--output={output}"
            yield "--open-mode=append"
            yield "--requeue" if job.requeue else "--no-requeue"
            if "signal" not in given:
                yield f"--signal=B:USR1@{notice_seconds(plan)}"
        yield f"--nodes={hosts}"
        yield "--ntasks-per-node=1"
        yield from words({**given, **own})


def notice_seconds(plan: LaunchPlan) -> int:
    """Return how many seconds before its time limit the job must get the signal to save."""
    return math.ceil(max(node.stop_grace for node in plan.nodes) + _MARGIN)


def overriding(plan: LaunchPlan) -> frozenset[str]:
    """Return the environment variables that sbatch would prefer to the options in the script of a plan.

    Variables for other options, such as `SBATCH_ACCOUNT` if no account is given, keep their effect.
    """
    given = {word.partition("=")[0].removeprefix("--").upper().replace("-", "_") for word in options(plan)}
    names = {f"SBATCH_{name}" for name in (*given, "REQUEUE", "NO_REQUEUE", "ERROR", "WAIT", "ARRAY_INX")}
    return frozenset({*names, *(["SBATCH_TIMELIMIT"] if "TIME" in given else [])})


def _require_time(plan: LaunchPlan) -> None:
    """Raise a UserError if Slurm would announce the time limit as soon as the job begins."""
    given = SlurmJob.model_validate(plan.slurm).options()
    limit = limit_seconds(given.get("time", ""))
    _, _, seconds = given.get("signal", "").partition("@")
    before = int(seconds) if seconds.isdigit() else notice_seconds(plan)
    # Slurm may announce it up to a minute earlier.
    if limit is not None and limit < before + 60:
        what = f"the time limit is {limit:g} s, but the ranks are told {before} s before it to save and end"
        hint = f"use more than {before + 60} s, or less time to save (experiment.runner.stop_grace)"
        raise UserError([Problem(what, "experiment.runner.slurm.time", hint)])


def _quoted(word: str) -> str:
    """Return a word of a `#SBATCH` line as sbatch reads it: in double quotes if it has other characters.

    Raises:
        UserError: the word has characters that no quotes protect, such as a newline.
    """
    if not word.isprintable():
        name, _, value = word.partition("=")
        raise UserError([Problem(f"Slurm's {name} cannot hold {value!r}", hint="use a path of one line")])
    name, sign, value = word.partition("=")
    if not sign or shlex.quote(value) == value:
        return word
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{escaped}"'
