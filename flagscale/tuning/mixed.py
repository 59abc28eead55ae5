"""Hosts of several types: their meshes are chosen by the planner alone, without trials."""

from __future__ import annotations

from collections.abc import Callable

from flagscale.config.command import Request, load_command_keys
from flagscale.errors import UserError
from flagscale.estimates.auto_plan import auto_plan
from flagscale.estimates.plan_text import auto_plan_text, hostfile_of
from flagscale.files import write_atomic
from flagscale.plan.stages import hosts_to_plan
from flagscale.run.tuner_dir import TunerDir
from flagscale.tuning.requests import task_request


def has_mixed_hosts(request: Request) -> bool:
    """Return whether the hosts of a configuration have several types; False if they cannot be read."""
    try:
        _, hosts = hosts_to_plan(request.config, request.source_map)
    except UserError:
        return False  # reported with all other mistakes
    return len({host.platform for host in hosts}) > 1


def choose_meshes(request: Request, say: Callable[[str], None]) -> Request:
    """Return the request of the job with the best meshes.

    Its task file is written, and a hostfile if hosts are left out.

    Raises:
        UserError: the configuration has mistakes, or no plan fits.
        FlagScaleError: a tuner is running in the run directory, or it cannot be written.
    """
    experiment, _ = hosts_to_plan(request.config, request.source_map)
    chosen = auto_plan(request, load_command_keys(request.config).chip)
    files = TunerDir.of(experiment.exp_dir)
    hostfile = hostfile_of(files.task_file)
    with files.held():
        write_atomic(files.task_file, chosen.task_file)
        if not chosen.takes_all:
            write_atomic(hostfile, chosen.hostfile)
    say(auto_plan_text(chosen, files.task_file))
    return task_request(request, chosen.task_file, chosen.words(str(hostfile)))
