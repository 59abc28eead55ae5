"""Apply the rules to the arguments of a training job, also if hosts or some arguments are not known."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from flagscale import platforms
from flagscale.checks.degrees import model_size, violations
from flagscale.checks.hetero.rules import UNSUPPORTED, shape_violations
from flagscale.checks.loading import RANKS
from flagscale.checks.megatron import rule_violations
from flagscale.checks.pictures import has_pictures, size_violations
from flagscale.checks.tracing import traced_rank_violations
from flagscale.checks.worker import Capabilities, with_defaults, worker_violations
from flagscale.config.certain import certain_violations
from flagscale.config.engine_args import EngineArguments
from flagscale.engines.megatron import hetero, resume
from flagscale.engines.megatron.hetero import Hetero
from flagscale.engines.megatron.program import TrainingProgram
from flagscale.errors import Violation
from flagscale.platforms import cpu
from flagscale.values import Host

_COPIES = (1, 2, 3)
"""Numbers of model copies that a job on unknown hosts may have."""


def broken_rules(
    arguments: EngineArguments, hosts: Sequence[Host] | None, meshes: Hetero, program: TrainingProgram
) -> list[Violation]:
    """Return each rule that is broken, once, even if several meshes break it.

    If `hosts` is None or arguments are unknown: those that are broken whatever these are.
    """
    if not arguments.is_complete:
        return []
    given = {*arguments.paths, *arguments.unknown}

    def find(values: Mapping[str, Any]) -> list[Violation]:
        if hosts is not None:
            return list(_violations(values, given, hosts, None, meshes, program))
        machines = [Capabilities(has_chip, has_chip, cpu.BACKEND) for has_chip in (True, False)]
        each = [
            dict.fromkeys(_violations(values, given, machine, copies, meshes, program))
            for machine in machines
            for copies in _COPIES
        ]
        return [one for one in each[0] if all(one in others for others in each)]

    return certain_violations(find, arguments.values, arguments.unknown)


def _violations(
    values: Mapping[str, Any],
    given: Collection[str],
    place: Sequence[Host] | Capabilities,
    copies: int | None,
    meshes: Hetero,
    program: TrainingProgram,
) -> Iterator[Violation]:
    """Yield broken rules; `place`: the hosts, or else a machine for `copies` of the model."""
    layout = meshes.layout
    hosts = None if isinstance(place, Capabilities) else place
    machine = place if isinstance(place, Capabilities) else machine_of(place)
    values = with_ranks(values, hosts)
    variants = [with_defaults(one, given, machine) for one in hetero.variants(layout, values)]
    found: dict[Violation, None] = {}
    for variant in variants:
        found |= dict.fromkeys(rule_violations(variant))
    ranks = sum(host.slots for host in hosts) if hosts is not None else model_size(values) * (copies or 1)
    if layout is not None:
        found |= dict.fromkeys(hetero.violations(layout, values, hosts, [*given]))
    elif meshes.is_known:
        single, size = meshes.single, ranks if hosts is not None else None
        wrong = single and [*shape_violations(single, values, size or single.world_size, [*given])]
        found |= dict.fromkeys(wrong or violations(values, ranks))
    for violation in worker_violations(variants, machine, program.own_parts):
        # No program supports these arguments with meshes: only the rules of meshes report them.
        if (layout is None and meshes.is_known) or violation[0] not in UNSUPPORTED:
            found[violation] = None
    if hosts is not None:  # otherwise the run directory, too, is a placeholder
        found |= dict.fromkeys(traced_rank_violations(values, ranks))
        found |= dict.fromkeys(resume.violations(*hetero.first_mesh(layout, values, ranks)))
    if has_pictures(values):
        found |= dict.fromkeys(size_violations(values, given))
    yield from found
    for option in program.arguments.values():
        if option.required and option.dest not in given:
            yield option.dest, f"`{option.name.replace('-', '_')}` is required by `{program.name}`"


def with_ranks(values: Mapping[str, Any], hosts: Sequence[Host] | None) -> Mapping[str, Any]:
    """Return the arguments (by dest) with the ranks that share the pictures, if the hosts tell them."""
    ranks = sum(host.slots for host in hosts or ())
    model = model_size(values)
    if not has_pictures(values) or not ranks or model < 1 or ranks % model:
        return values
    return {**values, RANKS: ranks // model}


def machine_of(hosts: Sequence[Host]) -> Capabilities:
    """Return the launcher's facts about the ranks' machines; the rules of meshes report unequal ones."""
    kinds = [platforms.find(name) for name in dict.fromkeys(host.platform for host in hosts)]
    kind = next((kind for kind in kinds if kind.is_host_processor), kinds[0])
    # Only the worker can see whether fused layers are installed; on chips, they are assumed to be.
    has_chip = not kind.is_host_processor
    return Capabilities(has_chip, has_chip, cpu.BACKEND)
