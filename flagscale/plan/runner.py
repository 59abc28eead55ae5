"""The pure half of a runner: its decisions about a job before anything starts.

The half with effects, and the full contract, is `flagscale.runners.base.JobRunner`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from flagscale.errors import Problem, nearest
from flagscale.values import LaunchPlan

if TYPE_CHECKING:
    from flagscale.config.schema import Runner, Section
    from flagscale.plan.hostfile import HostLine

Where = Callable[[str], str]
"""Returns the file and line at which a key path was written."""


@dataclass(frozen=True)
class LocalDevices:
    """The devices of this host."""

    platform: str
    count: int
    are_shared: bool
    """Whether any number of ranks can use them, as with CPUs."""
    only_plans: bool = False
    """Whether the job is only planned here, so that it may ask for more devices than this host has."""
    any_hosts: bool = False
    """Whether the job may also be planned for hosts that exist nowhere: as many as `nnodes` says."""

    def suffice(self, ranks: int) -> bool:
        """Return whether a start on this host would find enough devices."""
        return self.are_shared or ranks <= self.count


@dataclass(frozen=True)
class Share:
    """The part of a run that one command starts and manages."""

    run_dir: Path
    rank: int | None = None
    """The rank of the only host that the command starts; None: it starts all of them."""


def _as_given(runner: Runner, environ: Mapping[str, str], where: Where) -> Runner:
    return runner


def _whole(exp_dir: Path, node_rank: int | None, environ: Mapping[str, str]) -> Share:
    return Share(exp_dir)


def _nothing_of_slurm(environ: Mapping[str, str]) -> Mapping[str, str]:
    return {"slurm": "only type: slurm asks Slurm for anything"}


def _no_scripts(plan: LaunchPlan) -> Mapping[Path, str]:
    return {}


@dataclass(frozen=True)
class RunnerRules:
    """What a runner decides from keys and environment alone: hosts, this host's rank, run directory."""

    name: str
    """Its registered name, as written in `experiment.runner.type`."""
    hosts: Callable[[Runner, LocalDevices, Where], tuple[HostLine, ...]]
    """Return the hosts that the job may use, in rank order; placeholders if a queue chooses them later.

    Raises UserError if hosts cannot be used.
    """
    refused: Mapping[str, str] = field(default_factory=dict)
    """Keys of `experiment.runner` that contradict this runner, or would have no effect, and why."""
    unused: Callable[[Mapping[str, str]], Mapping[str, str]] = _nothing_of_slurm
    """Return keys that have no effect either, but may stand in a file that serves several runners, and why;
    given the environment."""
    options: type[Section] | None = None
    """The keys of `experiment.runner.options`, which are checked like all others; default: no keys."""
    resolve: Callable[[Runner, Mapping[str, str], Where], Runner] = _as_given
    """Return the keys, completed from the environment. Raises UserError if a value is missing or wrong."""
    share: Callable[[Path, int | None, Mapping[str, str]], Share] = _whole
    """Return the share of this command, given `exp_dir`, the key `node_rank` and the environment.

    It never fails: `query`, `logs` and `stop` find the run by it, even if other keys are wrong.
    """
    foreground: bool = False
    """Whether `run` stays until the job ends, as `test` does."""
    scripts: Callable[[LaunchPlan], Mapping[Path, str]] = _no_scripts
    """Return scripts, by path, that its `start` records besides those of the hosts; `dryrun` prints them."""

    def notices(self, runner: Runner, environ: Mapping[str, str], where: Where) -> list[str]:
        """Return one notice per given key of `unused`."""
        fields = type(runner).model_fields
        return [
            f"{where(f'experiment.runner.{key}')}: `{key}` has no effect with type: {self.name}: {why}"
            for key, why in self.unused(environ).items()
            if getattr(runner, key) != fields[key].get_default(call_default_factory=True)
        ]

    def refusals(self, runner: Runner, where: Where) -> list[Problem]:
        """Return one problem per given key that has no effect with this runner.

        Raises:
            ValueError: `refused` has a key that does not exist.
        """
        fields = type(runner).model_fields
        for key in self.refused:
            if key not in fields:
                hint = nearest(key, fields)
                raise ValueError(f"runner `{self.name}`: `refused` has an unknown key `{key}`; {hint}")
        return [
            Problem(
                f"`{key}` has no effect with type: {self.name}: {why}",
                where(f"experiment.runner.{key}"),
                "remove the key",
            )
            for key, why in self.refused.items()
            if getattr(runner, key) != fields[key].default
        ]
