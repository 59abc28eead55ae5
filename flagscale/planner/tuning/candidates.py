"""The candidates of a tuner: every legal combination of the values of its space, each once.

Whether one is legal is decided by the same functions as before a start (`flagscale.checks`); nothing here
knows a rule.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from typing import Any

from flagscale.checks.degrees import degrees, model_size, violations
from flagscale.checks.megatron import rule_violations
from flagscale.checks.recompute import LISTS, chunk_layers
from flagscale.checks.worker import argument_violations
from flagscale.errors import Problem, UserError, Violation
from flagscale.frozen import replace
from flagscale.planner.tuning.space import (
    AUTO,
    DEGREES,
    DIMENSIONS,
    DISTRIBUTED,
    DP,
    GRANULARITY,
    LAYERS,
    METHOD,
    MICRO,
    PER_CHUNK,
    PP,
    RECOMPUTE,
    SEQUENCE,
    TP,
    USE,
    Changes,
    Space,
)

MOST = 10_000
"""Candidates of the largest space; each is estimated before the first trial."""


def candidates(space: Space) -> tuple[Changes, ...]:
    """Return every legal combination, each once, in the order of the space's values.

    Raises:
        UserError: there are none, with the rules that removed the last ones; or more than `MOST`, with the
            number of values of each dimension.
    """
    space = _without_impossible(space)
    found: Sequence[Changes] = [{}]
    for level in (_degrees, _chunks, _micro_batches):
        found = _legal(space, level(space, found), neutral=True)
    settings = max((len(_settings(space, one)) for one in found), default=1)
    others = {name: space.choices[name] for name in space.choices if name not in DIMENSIONS}
    each = [len(space.choices[name]) for name in (SEQUENCE, DISTRIBUTED)] + [
        len(one) for one in others.values()
    ]
    if (most := len(found) * prod(each) * settings) > MOST:
        raise UserError([_too_many(space, most, settings)])
    return tuple(_legal(space, _whole(space, found, others), neutral=False))


_MANY = 100_000
"""Combinations that are checked in about a second."""


def _without_impossible(space: Space) -> Space:
    """Return a huge space without sizes that are illegal whatever the rest is; others unchanged.

    Those of a small space stay, because messages say which rule removed how many candidates.
    """
    names = (*DEGREES, PER_CHUNK, MICRO)
    if prod(len(space.choices[name]) for name in names) <= _MANY:
        return space
    layers, batch = int(space.values.get("num_layers") or 1), int(space.values["global_batch_size"])
    wholes = {**dict.fromkeys(DEGREES, space.world_size), MICRO: batch}
    kept = {
        name: tuple(size for size in space.choices[name] if whole % size == 0)
        for name, whole in wholes.items()
    }
    kept[PER_CHUNK] = tuple(dict.fromkeys(size if size < layers else 0 for size in space.choices[PER_CHUNK]))
    return replace(space, choices={**space.choices, **{name: one for name, one in kept.items() if one}})


_NEUTRAL: Changes = {
    PER_CHUNK: None,
    MICRO: 1,
    SEQUENCE: False,
    GRANULARITY: None,
    METHOD: None,
    LAYERS: None,
    **dict.fromkeys(LISTS),
}
"""Values with which the rules of degrees allow whatever they allow with any other value."""
SMALLEST: Changes = {**dict.fromkeys(DEGREES, 1), **_NEUTRAL}
"""The layout that is legal if any is."""


def _degrees(space: Space, before: Sequence[Changes]) -> Iterator[Changes]:
    for sizes in itertools.product(*(space.choices[name] for name in DEGREES)):
        yield dict(zip(DEGREES, sizes, strict=True))


def _chunks(space: Space, before: Sequence[Changes]) -> Iterator[Changes]:
    """Yield the layers per chunk; a stage that is one chunk is not interleaved, however that is written."""
    both = {"num_virtual_stages_per_pipeline_rank": None} if _has_own_chunks(space) else {}
    for one in before:
        layers = (space.values.get("num_layers") or 1) // one[PP]
        for size in space.choices[PER_CHUNK]:
            is_cut = size and one[PP] > 1 and size < layers
            yield {**one, **both, PER_CHUNK: size if is_cut else None}


def _has_own_chunks(space: Space) -> bool:
    return space.values.get("num_virtual_stages_per_pipeline_rank") is not None


def _micro_batches(space: Space, before: Sequence[Changes]) -> Iterator[Changes]:
    for one in before:
        for size in space.choices[MICRO]:
            yield {**one, MICRO: size}


def _whole(space: Space, before: Sequence[Changes], others: Mapping[str, Sequence[Any]]) -> Iterator[Changes]:
    for one in before:
        copies = degrees({**space.values, **one}, space.world_size)
        # What has no effect is not tried twice.
        sequence = space.choices[SEQUENCE] if one[TP] > 1 else (False,)
        shards = space.choices[DISTRIBUTED]
        shards = shards if copies.dp * copies.cp > 1 or len(shards) == 1 else (False,)
        for is_cut, is_sharded, *rest in itertools.product(sequence, shards, *others.values()):
            more = {SEQUENCE: is_cut, DISTRIBUTED: is_sharded, **dict(zip(others, rest, strict=True))}
            for setting in _settings(space, one):
                yield {**one, **more, **setting}


def _settings(space: Space, one: Changes) -> list[Changes]:
    """Return what may be recomputed with a candidate's degrees."""
    choices = space.choices
    if choices[USE] == (None,):
        return [{}]
    values = {**space.values, **_NEUTRAL, **one}
    found = degrees(values, space.world_size)
    largest = max(chunk_layers(values, found.pp, found.vpp) or (values.get("num_layers") or 1,))
    off = dict.fromkeys((*LISTS, GRANULARITY, METHOD, LAYERS))
    off = {name: None for name in off if name not in LISTS or values.get(name) is not None}
    if space.values.get("recompute_activations"):
        off["recompute_activations"] = None
    settings: list[Changes] = [off] if False in choices[USE] else []
    for kind in choices[GRANULARITY] if True in choices[USE] else ():
        if kind != "full":
            settings.append({**off, GRANULARITY: kind})
            continue
        for method in choices[METHOD]:
            counts = _layer_counts(choices[LAYERS], method, largest)
            settings += ({**off, GRANULARITY: kind, METHOD: method, LAYERS: count} for count in counts)
    return settings


def _layer_counts(choices: Sequence[Any], method: str, largest: int) -> list[int]:
    """Return the numbers of layers to try. `auto`: for blocks powers of two, and all; else single layers."""
    if choices == (AUTO,):
        powers = itertools.takewhile(lambda size: size < largest, (2**power for power in range(20)))
        choices = [*powers, largest] if method == "block" else [1]
    return list(dict.fromkeys(min(count, largest) for count in choices))


def broken_rules(space: Space, values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the rules that arguments break, as before a start, besides those of data and checkpoints."""
    yield from violations(values, space.world_size)
    yield from rule_violations(values)
    yield from argument_violations(values, space.machine)


def _legal(space: Space, found: Iterable[Changes], *, neutral: bool) -> list[Changes]:
    """Return the combinations that break no rule; `neutral`: no rule of degrees, with the rest neutral.

    Raises:
        UserError: there are none.
    """
    kept: dict[tuple[Any, ...], Changes] = {}
    removed: dict[str, int] = {}
    for one in found:
        key = tuple(map(repr, one.items()))
        if key in kept:
            continue
        values = {**space.values, **(_NEUTRAL if neutral else {}), **one}
        first = next(_copies_problem(space, values), None)
        if first is None:
            rules = violations(values, space.world_size) if neutral else broken_rules(space, values)
            first = next((what for _, what in rules), None)
        if first is None:
            kept[key] = one
        else:
            removed[first] = removed.get(first, 0) + 1
    if not kept:
        raise UserError([_empty(space, removed)])
    return list(kept.values())


def _copies_problem(space: Space, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield why the copies of the model are not among those that the space allows."""
    size = model_size(values)
    if space.world_size % size == 0 and (copies := space.world_size // size) not in space.choices[DP]:
        yield f"{DP} would be {copies}, which the space does not list"


def _empty(space: Space, removed: Mapping[str, int]) -> Problem:
    """Return the problem of a space without legal candidates; a rule is named with one of its messages."""
    rules: dict[str, tuple[str, int]] = {}
    for what, times in removed.items():
        rule = re.sub(r"\d+", "#", what)
        example, before = rules.get(rule, (what, 0))
        rules[rule] = example, before + times
    most = sorted(rules.values(), key=lambda one: -one[1])[:3]
    listed = "".join(f"\n    {times} of them, such as: {example}" for example, times in most)
    what = f"no candidate of the space is legal; the last {sum(removed.values())} were removed by{listed}"
    hint = "add other values to the dimensions that these name, or set them to auto"
    return Problem(what, space.where, hint)


def _too_many(space: Space, count: int, settings: int) -> Problem:
    sizes = {name: len(one) for name, one in space.choices.items() if name not in (DP, *RECOMPUTE)}
    sizes["recompute"] = settings
    listed = ", ".join(f"{name} {size}" for name, size in sorted(sizes.items(), key=lambda one: -one[1]))
    what = f"the space has up to {count} legal candidates, more than {MOST}; values by dimension: {listed}"
    hint = "list fewer values in the first ones: `micro_batch_size: [1, 2, 4]`, `use_recompute: [false]`"
    return Problem(what, space.where, hint)
