"""Check a configuration stage by stage; a mistake in one stage does not hide those of the others.

The stages are: the experiment's keys, the runner, the hosts, the engine, the program, the task group. A key
that has a mistake is not known to later stages, which report only what is wrong whatever it is meant to be.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from omegaconf import DictConfig

from flagscale import platforms, registry
from flagscale.config.load import Loaded, load_experiment, read_section
from flagscale.config.schema import Experiment, Runner, Section
from flagscale.config.source_map import SourceMap
from flagscale.engines.base import Engine
from flagscale.errors import Problem, UserError
from flagscale.plan.entrypoint import check_entrypoint
from flagscale.plan.hosts import select_hosts
from flagscale.plan.per_host import job_per_host
from flagscale.plan.runner import LocalDevices, RunnerRules, Share
from flagscale.platforms import Platform
from flagscale.values import Host, Job


@dataclass(frozen=True)
class Checked:
    """A configuration without mistakes."""

    experiment: Experiment
    """As completed by the runner."""
    engine: Engine
    job: Job
    share: Share
    notices: tuple[str, ...]


def check_stages(
    config: DictConfig, source_map: SourceMap, only_plans: bool, any_hosts: bool = False
) -> Checked:
    """Return the job; `only_plans`: it may need more devices than this host has; `any_hosts`: and more hosts
    than there are.

    Raises:
        UserError: with the mistakes of all stages.
    """
    loaded = load_experiment(config, source_map)
    if loaded.experiment is None:
        raise UserError(loaded.problems)
    source_map = replace(source_map, unreadable=loaded.wrong)
    stages = _Stages(loaded, source_map)
    experiment = loaded.experiment
    rules = stages.runner(experiment)
    if rules:
        experiment = stages.resolved(experiment, rules)
    hosts = stages.hosts(experiment, rules, only_plans, any_hosts)
    if hosts and len(hosts) == 1:  # by itself in any case
        runner = experiment.runner.model_copy(update={"per_node_task": False})
        experiment = experiment.model_copy(update={"runner": runner})
    engine = stages.engine(experiment)
    if not {"experiment.task", "experiment.task.entrypoint"} & loaded.wrong:
        stages.gather(lambda: check_entrypoint(experiment, source_map))
    job = stages.job(experiment, engine, hosts)
    share = rules.share(experiment.exp_dir, experiment.runner.node_rank, os.environ) if rules else None
    if job and rules and share and job.services and len(job.hosts) > 1 and share.rank is not None:
        # Services need the addresses of all hosts, which only a command that starts all of them knows.
        what, hint = f"`{rules.name}` cannot start services on several hosts", "set nnodes: 1, or type: ssh"
        stages.problems.append(Problem(what, source_map.where("experiment.runner.type"), hint))
    if stages.problems or engine is None or job is None or share is None:
        raise UserError(dict.fromkeys(stages.problems))
    return Checked(experiment, engine, job, share, (*loaded.notices, *stages.notices))


def hosts_to_plan(config: DictConfig, source_map: SourceMap) -> tuple[Experiment, tuple[Host, ...]]:
    """Return the experiment and the hosts that it names, whether or not they exist and whatever the job is.

    Raises:
        UserError: with the mistakes of the experiment's keys and of the hosts.
    """
    loaded = load_experiment(config, source_map)
    if loaded.experiment is None:
        raise UserError(loaded.problems)
    stages = _Stages(loaded, replace(source_map, unreadable=loaded.wrong))
    experiment = loaded.experiment
    if rules := stages.runner(experiment):
        experiment = stages.resolved(experiment, rules)
    hosts = stages.hosts(experiment, rules, only_plans=True, any_hosts=True)
    if stages.problems or hosts is None:
        raise UserError(dict.fromkeys(stages.problems))
    return experiment, hosts


_OF_HOSTS = (
    "type",
    "options",
    "hostfile",
    "nnodes",
    "nproc_per_node",
    "platform",
    "node_rank",
)
"""Keys of `experiment.runner` without which the hosts and their ranks are not known."""
_SELECTED = ("include", "exclude")


class _Stages:
    """Collects the problems of all stages; a stage returns None if its result is not known."""

    def __init__(self, loaded: Loaded, source_map: SourceMap) -> None:
        self.problems = list(loaded.problems)
        self.notices: list[str] = []
        self._loaded, self._where, self._source_map = loaded, source_map.where, source_map
        self._hosts_known = not any(map(self._is_wrong, (*_OF_HOSTS, *_SELECTED)))

    def _is_wrong(self, key: str) -> bool:
        """Return whether the value of a key of `experiment.runner` is not known."""
        return not {"experiment.runner", f"experiment.runner.{key}"}.isdisjoint(self._loaded.wrong)

    def gather[Value](self, make: Callable[[], Value]) -> Value | None:
        """Return what `make` returns; None if it raises, with its problems kept.

        A problem that blames a key with a mistake is not kept: that key has been reported.
        """
        try:
            return make()
        except UserError as error:
            blamed = (problem.where.rpartition(": ")[2] for problem in error.problems)
            pairs = zip(error.problems, blamed, strict=True)
            self.problems += [problem for problem, key in pairs if key not in self._loaded.wrong]
            return None

    def runner(self, experiment: Experiment) -> RunnerRules | None:
        """Return the rules of the experiment's runner."""
        if self._is_wrong("type"):
            return None
        name, where = experiment.runner.type, self._where("experiment.runner.type")
        rules: RunnerRules | None = self.gather(lambda: registry.load("runners", name, where).rules)
        if rules is None:
            return None
        self.problems += rules.refusals(experiment.runner, self._where)
        self.notices += rules.notices(experiment.runner, os.environ, self._where)
        path = "experiment.runner.options"
        keys = rules.options or Section
        _, found = read_section(keys, experiment.runner.options, path, self._source_map)
        self.problems += found
        if found and rules.options:
            self._hosts_known = False  # a runner with options may choose hosts by them
        return rules

    def resolved(self, experiment: Experiment, rules: RunnerRules) -> Experiment:
        """Return the experiment as completed by its runner."""
        runner = self.gather(lambda: rules.resolve(experiment.runner, os.environ, self._where))
        if runner is None:
            self._hosts_known = False
        return experiment.model_copy(update={"runner": runner or experiment.runner})

    def hosts(
        self, experiment: Experiment, rules: RunnerRules | None, only_plans: bool, any_hosts: bool
    ) -> tuple[Host, ...] | None:
        """Return the hosts of the job, with a notice if it is planned for more devices than this host has."""
        runner, known = experiment.runner, self._hosts_known
        where = self._where("experiment.runner.platform")
        platform = (
            None
            if self._is_wrong("platform")
            else self.gather(lambda: platforms.find(runner.platform, where))
        )
        transport = self._where("experiment.runner.transport")
        self.gather(lambda: registry.load("transports", runner.transport, transport))
        if rules is None:
            return None
        devices = replace(_devices(platform, experiment, only_plans), any_hosts=any_hosts)
        if not known or platform is None:
            # Whatever the unknown keys are, the hostfile and the names in it can be checked.
            devices = LocalDevices(devices.platform, 1, are_shared=True)
            runner = self._lenient(runner)
        hosts = self.gather(lambda: select_hosts(rules, runner, devices, self._source_map))
        other = {host.platform for host in hosts or ()} - {devices.platform}
        type_ = hostfile_type(experiment)
        if None in [self.gather(partial(platforms.find, name, type_)) for name in sorted(other)]:
            return None
        if hosts is None or platform is None or not known:
            return None
        most = max(host.slots for host in hosts)
        if only_plans and not any_hosts and not runner.hostfile and not devices.suffice(most):
            place = self._where("experiment.runner.nproc_per_node")
            has = f"this host has {devices.count} {platform.name} devices"
            self.notices.append(
                f"{place}: {has}, the plan uses {most}: a start on this host would be refused"
            )
        return hosts

    def _lenient(self, runner: Runner) -> Runner:
        """Return the runner without the keys that could be blamed for another key's mistake."""
        left_out = {"nproc_per_node"}
        if self._is_wrong("hostfile"):
            left_out |= {"hostfile", "nnodes", *_SELECTED}
        fields = Runner.model_fields
        return runner.model_copy(
            update={key: fields[key].get_default(call_default_factory=True) for key in left_out}
        )

    def engine(self, experiment: Experiment) -> Engine | None:
        """Return the engine of the task."""
        if not {"experiment.task", "experiment.task.backend"}.isdisjoint(self._loaded.wrong):
            return None
        where = self._where("experiment.task.backend")
        engine: Engine | None = self.gather(lambda: registry.load("engines", experiment.task.backend, where))
        return engine

    def job(
        self, experiment: Experiment, engine: Engine | None, hosts: tuple[Host, ...] | None
    ) -> Job | None:
        """Return the job, or check the task group alone if the hosts are not known."""
        if engine is None or not self._loaded.has_task:
            return None
        if hosts is not None:
            if experiment.runner.per_node_task:
                return self.gather(lambda: job_per_host(experiment, engine, hosts, self._source_map))
            return self.gather(lambda: engine.build(experiment, hosts, self._source_map))
        self.problems += engine.check(experiment.task, experiment.arguments, self._source_map)
        return None


def _devices(platform: Platform | None, experiment: Experiment, only_plans: bool) -> LocalDevices:
    if platform is None:
        return LocalDevices("unknown", 1, are_shared=True)
    count = platform.count_devices({**os.environ, **experiment.envs.common()})
    return LocalDevices(platform.name, count, platform.shares_devices, only_plans)


def hostfile_type(experiment: Experiment) -> str:
    """Return the place to blame for the type of a host."""
    return f"{experiment.runner.hostfile}: type="
