"""A job of its own on each host (`experiment.runner.per_node_task`): the same program, nothing in common.

Each host's job is that of a single host, with metrics, checkpoints and other files in a folder of its own.
"""

from __future__ import annotations

from dataclasses import replace

from flagscale.config.schema import Experiment
from flagscale.config.source_map import SourceMap
from flagscale.engines.base import Engine
from flagscale.errors import Problem, UserError
from flagscale.run.rundir import RunDir
from flagscale.values import Host, Job


def job_per_host(
    experiment: Experiment, engine: Engine, hosts: tuple[Host, ...], source_map: SourceMap
) -> Job:
    """Return the job whose hosts each have a role of their own (`Job.own_roles`).

    Raises:
        UserError: with the mistakes of all hosts, each once.
    """
    problems: list[Problem] = []
    jobs: dict[int, Job] = {}
    if ":" in str(experiment.runner.nnodes or ""):
        where = source_map.where("experiment.runner.nnodes")
        problems.append(Problem("with `per_node_task` no host replaces another: give one number", where))
    for host in hosts:
        alone = experiment.model_copy(update={"exp_dir": RunDir(experiment.exp_dir).own_of(host).path})
        try:
            jobs[host.rank] = engine.build(alone, (replace(host, rank=0),), source_map)
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(dict.fromkeys(problems))
    first = jobs[hosts[0].rank]
    return replace(
        first,
        hosts=hosts,
        layout=f"{first.layout} on each host",
        own_roles={rank: job.role for rank, job in jobs.items()},
        notices=tuple(dict.fromkeys(notice for job in jobs.values() for notice in job.notices)),
    )
