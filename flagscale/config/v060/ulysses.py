"""FlagScale v0.6.0's `ulysses_sp_parallel_size`: context parallel ranks of the engine that exchange heads.

v0.6.0 had it beside `context_parallel_size`: adjacent ranks exchanged heads for sequence, and context
parallelism ran between groups of them (`megatron/core/parallel_state.py`: `tp-usp-cp-ep-dp-pp`). Those are
the groups of `a2a`, and of `a2a+p2p`. v0.6.0 gave the ranks of a group their parts of the sequence in order,
the engine gives them in a zigzag: the result is the same, because attention sees whole sequences, and all
else in a layer sees single positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from flagscale.config.engine_args import FlatKey, Unknown
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem

KEY, CONTEXT = "ulysses_sp_parallel_size", "context_parallel_size"
_TYPE, _SIZES = "cp_comm_type", "hierarchical_context_parallel_sizes"


def with_exchange(
    flat_keys: Sequence[FlatKey], source_map: SourceMap, problems: list[Problem], notices: list[Problem]
) -> list[FlatKey]:
    """Replace `ulysses_sp_parallel_size` with context parallelism that exchanges heads."""
    named = {flat_key.name: flat_key for flat_key in flat_keys}
    if (key := named.get(KEY)) is None:
        return [*flat_keys]
    rest = [flat_key for flat_key in flat_keys if flat_key is not key]
    where = source_map.where(key.path)
    if key.value is not True and key.value in (None, False, 1):
        notices.append(Problem("dropped because it has no effect", where))
        return rest
    outer = named.get(CONTEXT) or FlatKey(CONTEXT, 1, key.path)
    ranks, rings = key.value, 1 if outer.value is None else outer.value
    others = [flat_key for flat_key in rest if flat_key is not outer]
    unknown = [FlatKey(name, Unknown.VALUE, key.path) for name in (_TYPE, _SIZES)]
    if wrong := _mistake(ranks, named):
        problems.append(Problem(f"`{KEY}` {wrong[0]}", where, wrong[1]))
    elif type(rings) is not int and rings is not Unknown.VALUE:
        return [*rest, *unknown]  # its own mistake is reported later
    if wrong or Unknown.VALUE in (ranks, rings):
        return [*others, replace(outer, value=Unknown.VALUE), *unknown]
    new: dict[str, Any] = {CONTEXT: ranks * rings, _TYPE: "a2a"}
    if rings > 1:
        new |= {_TYPE: "a2a+p2p", _SIZES: [ranks, rings]}
    shown = ", ".join(f"`{name}: {value}`" for name, value in new.items())
    places = dict.fromkeys((where, source_map.where(outer.path)))
    notices.append(Problem(f"is now {shown}", ", ".join(places)))
    paths = {CONTEXT: outer.path}
    return [*others, *(FlatKey(name, value, paths.get(name, key.path)) for name, value in new.items())]


def _mistake(ranks: Any, named: Mapping[str, FlatKey]) -> tuple[str, str] | None:
    """Return what is wrong and how to fix it, if the size is no number, or other keys stand against it."""
    if ranks is not Unknown.VALUE and (type(ranks) is not int or ranks < 1):
        return f"must be a whole number of at least 1, not {ranks!r}", ""
    given = {name: key.value for name, key in named.items() if key.value is not None}
    if given.get("enable_hetero", "hetero_process_meshes" in given) not in (False, Unknown.VALUE):
        return (
            "cannot be combined with meshes, as in v0.6.0",
            "remove it, multiply the cp of each mesh by it, and set cp_comm_type: a2a",
        )
    if newer := [name for name in (_TYPE, _SIZES) if name in given]:
        return (
            f"and `{newer[0]}` cannot be combined: v0.6.0 had no `{newer[0]}`",
            f"remove `{KEY}`, and set {CONTEXT} to the number of all ranks that share a sequence",
        )
    return None
