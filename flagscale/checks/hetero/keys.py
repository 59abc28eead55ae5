"""The keys of a heterogeneous layout: FlagScale v0.6.0's, and a readable form of the same.

hetero_process_meshes: [2,1,1,1,1, 1,1,1,2,1]      # tp, cp, ep, dp, pp of one mesh after the other
hetero_process_meshes:                             # the same with names; what is left out is 1
  - {type: H800, tp: 2, layers: [3]}
  - {type: A800, dp: 2, layers: [1]}

Of an interleaved pipeline, the layers of a stage are those of its model chunks: `[2, 1]` instead of `3`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import batched
from typing import Any

from flagscale.checks.hetero.layout import DEGREES, HeteroLayout, Mesh, with_layers
from flagscale.errors import Violation

ENABLE, MESHES, SPLIT, TYPES, CURRENT, CPU, EXTRA = KEYS = (
    "enable_hetero",
    "hetero_process_meshes",
    "hetero_pipeline_layer_split",
    "hetero_device_types",
    "hetero_current_device_type",
    "hetero_use_cpu_communication",
    "hetero_extra_micro_batches",
)

OF_CHUNKS, IN_CHUNK = CHUNK_KEYS = (
    "num_virtual_stages_per_pipeline_rank",
    "num_layers_per_virtual_pipeline_stage",
)
"""Keys of the engine that ask for an interleaved pipeline; a layout holds what they say."""

_LAYERS = "of at least 1, one per stage (or a list of them, one per model chunk)"
_NAMES = (*DEGREES, "layers", "type", "sp")
_FORM = "five whole numbers (tp, cp, ep, dp, pp) per mesh, or a list of {type, tp, cp, ep, dp, pp, layers}"


def is_asked(given: Mapping[str, Any]) -> bool:
    """Whether the keys ask for a heterogeneous layout; `enable_hetero: false` switches all of them off."""
    enabled = given.get(ENABLE)
    return given.get(MESHES) is not None if enabled is None else enabled is not False


def read(given: Mapping[str, Any], num_layers: int | None) -> tuple[HeteroLayout | None, list[Violation]]:
    """Return the layout that the keys describe, or None and every mistake in their form."""
    found: list[Violation] = []
    for name in (ENABLE, CPU):
        if not isinstance(given.get(name), bool | None):
            found.append((name, f"`{name}` must be true or false, not {given[name]!r}"))
    extra = given.get(EXTRA)
    if extra is not None and (type(extra) is not int or extra < 0):
        found.append((EXTRA, f"`{EXTRA}` must be a whole number of at least 0, not {extra!r}"))
    meshes = _meshes(given.get(MESHES), found)
    if meshes is None:
        return None, found
    types = given.get(TYPES)
    if types is not None:
        meshes = _with_types(meshes, types, found)
    split = _split(meshes, given, num_layers, found)
    chunks = None if found or split is None else _chunks(split, given, found)
    if found or chunks is None:
        return None, found
    layout = HeteroLayout(with_layers(meshes, chunks), bool(given.get(CPU)))
    if extra is None:
        return layout, []
    if layout.chunks > 1:
        return None, [
            (EXTRA, f"an interleaved pipeline has its own order and cannot be combined with `{EXTRA}`")
        ]
    return replace(layout, extra_micro_batches=extra), []


def _meshes(raw: Any, found: list[Violation]) -> list[Mesh] | None:
    if not isinstance(raw, list) or not raw:
        found.append((MESHES, f"`{MESHES}` is required: {_FORM}"))
        return None
    if all(isinstance(item, Mapping) for item in raw):
        before = len(found)
        found += [
            violation for number, item in enumerate(raw) for violation in _named_violations(number, item)
        ]
        if len(found) > before:
            return None
        return [Mesh(**{name: value for name, value in item.items() if name != "layers"}) for item in raw]
    if any(not _is_size(item) for item in raw):
        wrong = next(item for item in raw if not _is_size(item))
        found.append((MESHES, f"`{MESHES}` takes {_FORM}, not {wrong!r}"))
        return None
    if len(raw) % len(DEGREES):
        what = f"`{MESHES}` has {len(raw)} numbers, not a multiple of 5 (tp, cp, ep, dp, pp of each mesh)"
        found.append((MESHES, what))
        return None
    return [Mesh(*numbers) for numbers in batched(raw, len(DEGREES))]


def _named_violations(number: int, item: Mapping[str, Any]) -> Iterator[Violation]:
    for name, value in item.items():
        where = f"`{MESHES}` mesh {number}"
        if name not in _NAMES:
            yield MESHES, f"{where}: unknown name `{name}`; valid: {', '.join(_NAMES)}"
        elif name in DEGREES and not _is_size(value):
            yield MESHES, f"{where}: `{name}` must be a whole number of at least 1, not {value!r}"
        elif name == "layers" and not _is_split(value):
            yield (
                MESHES,
                f"{where}: `layers` must be a list of whole numbers {_LAYERS}, not {value!r}",
            )
        elif name == "type" and not isinstance(value, str):
            yield MESHES, f"{where}: `type` must be a name in the hostfile, not {value!r}"
        elif name == "sp" and not isinstance(value, bool):
            yield MESHES, f"{where}: `sp` (sequence parallel) must be true or false, not {value!r}"


def _with_types(meshes: list[Mesh], types: Any, found: list[Violation]) -> list[Mesh]:
    if not isinstance(types, list) or not all(isinstance(one, str) for one in types):
        found.append((TYPES, f"`{TYPES}` must be a list of names, one per mesh, not {types!r}"))
        return meshes
    if len(types) != len(meshes):
        found.append(
            (TYPES, f"`{TYPES}` names {len(types)} types for {len(meshes)} meshes: give one per mesh")
        )
        return meshes
    if any(mesh.type for mesh in meshes):
        found.append((TYPES, f"give the types in `{TYPES}` or in `{MESHES}`, not in both"))
        return meshes
    return [replace(mesh, type=one) for mesh, one in zip(meshes, types, strict=True)]


def _split(
    meshes: Sequence[Mesh], given: Mapping[str, Any], num_layers: int | None, found: list[Violation]
) -> Sequence[Any] | None:
    """Return what is told of the layers of every stage of the pipeline: a number, or one for each chunk."""
    stages = sum(mesh.pp for mesh in meshes)
    split, items = given.get(SPLIT), given[MESHES]
    told = {number: item["layers"] for number, item in enumerate(items) if _has_layers(item)}
    if split is not None:
        if told:
            found.append((SPLIT, f"give the layers in `{SPLIT}` or in `{MESHES}`, not in both"))
        elif not _is_split(split):
            found.append((SPLIT, f"`{SPLIT}` must be a list of whole numbers {_LAYERS}, not {split!r}"))
        elif len(split) != stages:
            found.append(
                (SPLIT, f"`{SPLIT}` has {len(split)} numbers for {stages} stages (the sum of all pp)")
            )
        else:
            return list(split)
        return None
    if told:
        for number, mesh in enumerate(meshes):
            if (size := len(told.get(number, ()))) != mesh.pp:
                what = f"`layers` has {size} numbers for {mesh.pp} stages (pp)"
                found.append((MESHES, f"`{MESHES}` mesh {number}: {what}"))
        return [layers for number in sorted(told) for layers in told[number]]
    if not num_layers:
        return None
    if num_layers % stages:
        what = f"num_layers {num_layers} cannot be divided evenly between {stages} stages: give `{SPLIT}`"
        found.append((MESHES, what))
        return None
    return [num_layers // stages] * stages


def _chunks(
    split: Sequence[Any], given: Mapping[str, Any], found: list[Violation]
) -> list[tuple[int, ...]] | None:
    """Return the layers of every chunk of every stage."""
    asked = {name: given[name] for name in CHUNK_KEYS if given.get(name) is not None}
    if wrong := [(name, value) for name, value in asked.items() if not _is_size(value)]:
        found += [
            (name, f"{name} must be a whole number of at least 1, not {value!r}") for name, value in wrong
        ]
        return None
    if len(asked) == len(CHUNK_KEYS):
        found.append((OF_CHUNKS, f"{OF_CHUNKS} and {IN_CHUNK} cannot be combined"))
        return None
    where = SPLIT if given.get(SPLIT) is not None else MESHES
    counts = {len(stage) for stage in split if isinstance(stage, list)}
    if OF_CHUNKS in asked:
        counts.add(asked[OF_CHUNKS])
    if IN_CHUNK in asked:
        where = IN_CHUNK
        counts |= {_layers(stage) // asked[IN_CHUNK] for stage in split}
    count = min(counts, default=1)
    if len(counts) > 1:
        told = " and ".join(map(str, sorted(counts)))
        found.append((where, f"all stages must have equally many model chunks, not {told}"))
    else:
        found += [
            (where, f"stage {number}: {stage} layers cannot be divided between {count} model chunks")
            for number, stage in enumerate(split)
            if isinstance(stage, int) and (stage % count or (IN_CHUNK in asked and stage % asked[IN_CHUNK]))
        ]
    if found:
        return None
    return [tuple(stage) if isinstance(stage, list) else (stage // count,) * count for stage in split]


def _layers(stage: Any) -> int:
    return sum(stage) if isinstance(stage, list) else int(stage)


def _has_layers(item: Any) -> bool:
    return isinstance(item, Mapping) and bool(item.get("layers"))


def _is_size(value: Any) -> bool:
    return type(value) is int and value >= 1


def _is_split(value: Any) -> bool:
    """Whether a value tells of the layers of stages: a number for each, or a list of those of its chunks."""
    return (
        isinstance(value, list)
        and all(
            _is_size(one) or (isinstance(one, list) and bool(one) and all(map(_is_size, one)))
            for one in value
        )
        and bool(value)
    )
