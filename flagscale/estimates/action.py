"""`action=estimate`: what a job needs and how fast it will be, or the best layout (`plan=auto`)."""

from __future__ import annotations

import json
from pathlib import Path

from flagscale.config.command import CommandOptions, Request, load_command_keys
from flagscale.errors import Problem, UserError
from flagscale.estimates.as_json import estimate_tree
from flagscale.estimates.auto_plan import auto_plan
from flagscale.estimates.job import estimate_of
from flagscale.estimates.picture import picture
from flagscale.estimates.plan_text import auto_plan_text, auto_plan_tree, hostfile_of
from flagscale.estimates.text import estimate_text
from flagscale.files import write_atomic


def estimate(request: Request) -> int:
    """Print what the job needs and how fast it will be; touch no host and start nothing.

    Neither the job's hosts nor their chips need to exist.
    """
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
