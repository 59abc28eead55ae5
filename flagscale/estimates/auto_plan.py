"""`plan=auto`: the best layout of a training on the hosts of its configuration, as a task file for `run`."""

from __future__ import annotations

import copy
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flagscale import platforms
from flagscale.checks.hetero.keys import CHUNK_KEYS, KEYS
from flagscale.config.catalog import Catalog, load_catalog
from flagscale.config.command import Request
from flagscale.config.recorded import recorded_values
from flagscale.config.schema import Runner
from flagscale.config.source_map import SourceMap
from flagscale.engines.megatron.adapter import CATALOG
from flagscale.errors import Problem, UserError
from flagscale.estimates.chips import chip_entries, chip_notes, chips_of
from flagscale.estimates.elsewhere import without_files
from flagscale.estimates.job import checked_job, on_chip
from flagscale.estimates.pools import Division, divisions
from flagscale.estimates.training import refuse_other_engines, refusing, training_for
from flagscale.frozen import replace
from flagscale.plan.stages import Checked, hosts_to_plan
from flagscale.planner.estimate import Estimate, estimate
from flagscale.planner.search.mesh_options import SEARCHED
from flagscale.planner.search.plans import Found, best_plans
from flagscale.planner.search.task_file import host_lines, task_file
from flagscale.planner.training import Training
from flagscale.values import Host, Job

_OTHERS = ("ulysses_sp_parallel_size", "recompute_modules", "recompute_activations", *CHUNK_KEYS)
"""Keys that a search replaces, besides those of its own and of meshes."""


@dataclass(frozen=True)
class Chosen:
    """The layout that was chosen, and why."""

    job: Job
    """With the chosen layout."""
    estimate: Estimate
    found: Found
    hosts: tuple[Host, ...]
    """Those that take part, in the order of the ranks."""
    named: tuple[Host, ...]
    """All that the configuration names."""
    runner: Runner
    """The configuration's own."""
    task_file: str
    """The task group with the chosen layout, as YAML."""

    @property
    def hostfile(self) -> str:
        """The hosts that take part, as a hostfile."""
        has_types = len({host.platform for host in self.named}) > 1
        lines = (
            f"{host.name} slots={host.slots}{f' type={host.platform}' if has_types else ''}"
            for host in self.hosts
        )
        return "\n".join(lines) + "\n"

    def words(self, hostfile: str) -> list[str]:
        """Return the overrides with which the configuration uses just the hosts that take part."""
        if self.takes_all:
            return []
        instead = {"nproc_per_node": "auto", "nnodes": "null", "include": "[]", "exclude": "[]"}
        given = self.runner.model_fields_set
        words = [f"experiment.runner.{key}={value}" for key, value in instead.items() if key in given]
        return [f"experiment.runner.hostfile={hostfile}", *words]

    @property
    def takes_all(self) -> bool:
        """Whether the hosts that take part are those that the configuration names."""
        return [*map(_place, self.hosts)] == [*map(_place, self.named)]


def _place(host: Host) -> tuple[str, int]:
    return host.name, host.slots


def auto_plan(request: Request, chip: str) -> Chosen:
    """Return the best plan for the hosts of a configuration; its own layout does not matter.

    Raises:
        UserError: the configuration has mistakes, or no plan fits.
    """
    source_map = request.source_map
    if find_spec("numpy") is None:
        what = "the search of plans needs numpy, which is not installed here"
        raise UserError([Problem(what, "plan", "install it on this machine: pip install numpy")])
    with platforms.any_platform():
        refuse_other_engines(OmegaConf.select(request.config, "experiment.task.backend"), source_map)
        config = on_chip(request.config, chip)
        experiment, named = hosts_to_plan(config, source_map)
        if experiment.runner.per_node_task and len(named) > 1:
            what = "`plan=auto` divides one job over all hosts, but with `per_node_task` each runs its own"
            where = source_map.where("experiment.runner.per_node_task")
            raise UserError([Problem(what, where, "plan for one host: nnodes=1")])
        chips = chips_of(experiment, named, chip_entries(experiment), chip, source_map)
        for notice in chip_notes(experiment, named, chip):
            print(f"note: {notice}", file=sys.stderr)
        one_rank = _on_one_rank(config, experiment.task.type, named[0].platform)
        checked = checked_job(one_rank, source_map)
        values = checked.job.arguments
        with refusing("cannot plan", checked.experiment, source_map):
            template = training_for(checked.job, checked.experiment, chips[:1], source_map)
            found, division = _best(template, [*divisions(named, chips)], values)
        hosts = tuple(_taking_part(found, division.hosts))
        group = experiment.task.type
        keys = recorded_values({group: experiment.arguments}, checked.job.texts)[group]
        has_types = len({host.platform for host in named}) > 1
        lines = [*host_lines((host.slots, host.platform if has_types else "") for host in hosts)]
        text = task_file(_without_others(keys), found.best, found.considered, hosts=lines)
        job = _job(checked, text, hosts)
        return Chosen(job, estimate(found.best.training), found, hosts, named, experiment.runner, text)


def _best(template: Training, ways: Sequence[Division], values: Mapping[str, Any]) -> tuple[Found, Division]:
    """Return the best plans of all divisions of the hosts, and the division of the best one."""
    found: list[tuple[Found, Division]] = []
    problems: list[Problem] = []
    for division in ways:
        try:
            one = best_plans(template, division.cluster, values, surely=True)
        except UserError as error:
            problems += error.problems
        else:
            sentences = (*one.considered, *filter(None, [division.note]))
            found.append((replace(one, considered=sentences), division))
    if not found:
        raise UserError(problems[:1])
    return min(found, key=lambda pair: pair[0].best.seconds)


def _job(checked: Checked, text: str, hosts: tuple[Host, ...]) -> Job:
    """Return the job of a task file, by the ordinary path: what `run` will check is checked here.

    Only files of data may be missing, as for any estimate.
    """
    group, nowhere = checked.experiment.task.type, SourceMap()
    config = OmegaConf.create({group: OmegaConf.create(text)})

    def build(config: DictConfig) -> Job:
        tree = OmegaConf.to_container(config, resolve=True)
        assert isinstance(tree, dict)
        chosen = checked.experiment.model_copy(update={"arguments": tree[group]})
        return checked.engine.build(chosen, hosts, nowhere)

    try:
        return build(config)
    except UserError as error:
        if not (found := without_files(config, group, error, nowhere)):
            raise
    return build(found[0])


def _without_others(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task group without the keys that would contradict what was chosen."""
    return {
        key: _without_others(value) if isinstance(value, Mapping) and key not in KEYS else value
        for key, value in tree.items()
        if key not in _OTHERS
    }


def _taking_part(found: Found, named: Sequence[Host]) -> Iterator[Host]:
    """Yield the hosts of the chosen meshes in their order; one that is needed in part has fewer slots."""
    left = list(named)
    number = 0
    for mesh in found.best.training.layout.meshes:
        ranks = mesh.ranks
        for host in [one for one in left if not mesh.type or one.platform == mesh.type]:
            if not ranks:
                break
            slots = min(ranks, host.slots)
            left.remove(host)
            yield Host(number, host.name, slots, host.platform)
            ranks -= slots
            number += 1


def _on_one_rank(config: DictConfig, group: str, platform: str) -> DictConfig:
    """Return the configuration as a job of one rank, which no rule about degrees refuses."""
    config = copy.deepcopy(config)
    tree = OmegaConf.to_container(config[group], resolve=False)
    assert isinstance(tree, dict)
    catalog = load_catalog(CATALOG)
    places = {name: path for path, name in _leaves(tree, group) if _is_searched(name, catalog)}
    for name, path in {"micro_batch_size": f"{group}.micro_batch_size", **places}.items():
        OmegaConf.update(config, path, SEARCHED.get(name), force_add=True)
    for key, value in (
        ("hostfile", None),
        ("nnodes", 1),
        ("nproc_per_node", 1),
        ("platform", platform),
        ("include", None),
        ("exclude", None),
    ):
        OmegaConf.update(config, f"experiment.runner.{key}", value, force_add=True)
    return config


def _is_searched(name: str, catalog: Catalog) -> bool:
    option = catalog.by_name.get(name)
    return name in (*_OTHERS, *KEYS) or (option.dest if option else name) in SEARCHED


def _leaves(tree: Mapping[Any, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield path and name of every key; a list or a mapping below a searched key belongs to it."""
    for key, value in tree.items():
        below = f"{path}.{key}"
        if isinstance(value, Mapping) and str(key) not in KEYS:
            yield from _leaves(value, below)
        else:
            yield below, str(key)
