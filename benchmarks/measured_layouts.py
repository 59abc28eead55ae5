"""The meshes of measured rows that name the layers and the chips of every stage.

The copies of the model may have different chips at the same stage (Sailor; AMP's mixed cluster). Then the
step waits for the slowest copy, so that each kind of copy is a layout of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from benchmarks.measured_fields import MOST_PARTS, Fields, Unusable
from flagscale.checks.hetero.layout import HeteroLayout, Mesh

AMP_BEFORE = 2
"""Of AMP's pseudo layers, those before the first layer of the model; 4 follow the last one (its
cost_het_cluster.py lists embedding, noop, 24 layers, noop, noop, output, noop)."""

AMP_MIXED = ("V100", "V100", "V100", "T4")
"""AMP's mixed cluster, host by host. The rows say 12 T4 + 4 V100, but AMP's source weighs the costs
0.75 x P3 (V100) + 0.25 x G4 (T4), and gives P3's links to the first three hosts (cost_het_cluster.py,
het_cluster.py)."""


@dataclass(frozen=True)
class Placed:
    """One stage of one copy of the model: the chip's name and its tensor parallel degree."""

    chip: str
    tp: int


@dataclass(frozen=True)
class Copies:
    """A layout for one kind of copy, with one chip's name for each mesh."""

    layout: HeteroLayout
    chips: tuple[str, ...]


def copies_of(row: Fields) -> list[Copies]:
    """Return the layouts of a row that gives its stages; empty if it does not."""
    layers = _layers(row)
    if not layers:
        return []
    columns = [*dict.fromkeys(_columns(row, len(layers)))]
    return [_copies(row, column, layers) for column in columns]


def _layers(row: Fields) -> list[int]:
    """Return the layers of the model that each stage has."""
    parallel, total = row.at("parallel"), row.at("model").whole("layers")
    if counted := parallel.wholes("layers_per_stage"):
        # Embedding and head count as layers.
        found = [*counted]
        if sum(found) == total + 2:
            found[0] -= 1
            found[-1] -= 1
    elif cuts := parallel.wholes("layer_cuts"):
        inside = [min(max(cut - AMP_BEFORE, 0), total) for cut in cuts]
        found = [end - start for start, end in pairwise(inside)]
    else:
        return []
    if sum(found) != total or min(found) < 0:
        raise Unusable(f"the stages have {sum(found)} layers, but the model {total}", is_wrong=True)
    if len(found) != parallel.whole("pp"):
        what = f"layers are given for {len(found)} stages, but parallel.pp is {parallel.whole('pp')}"
        raise Unusable(what, is_wrong=True)
    return found


def _columns(row: Fields, stages: int) -> list[tuple[Placed, ...]]:
    """Return the stages of every copy of the model."""
    parallel = row.at("parallel")
    dp = parallel.whole("dp", most=MOST_PARTS)
    if given := parallel.values.get("stages"):
        try:
            table = [[Placed(one["gpu"], one["tp"]) for one in stage] for stage in given]
        except (TypeError, KeyError):
            raise Unusable("parallel.stages must hold lists of {gpu, tp}", is_wrong=True) from None
        if len(table) != stages or any(len(stage) != dp for stage in table):
            raise Unusable(f"parallel.stages must hold {stages} stages of {dp} copies", is_wrong=True)
        if any(not isinstance(one.chip, str) or type(one.tp) is not int for stage in table for one in stage):
            raise Unusable("parallel.stages must hold lists of {gpu, tp}", is_wrong=True)
        return [tuple(column) for column in zip(*table, strict=True)]
    tp, hardware = parallel.whole("tp"), row.at("hardware")
    per_node, mix = hardware.whole("gpus_per_node"), hardware.at("mix").values
    hosts = [*AMP_MIXED] if len(mix) > 1 else [next(iter(mix), hardware.text("gpu"))]
    if len(mix) > 1 and hardware.whole("count") != per_node * len(hosts):
        raise Unusable("not published: the chips of each stage")

    world = stages * dp * tp
    if world != hardware.whole("count"):
        raise Unusable(f"the degrees need {world} devices, not {hardware.whole('count')}")

    def chip(stage: int, copy: int) -> str:
        # DeepSpeed numbers ranks along the pipeline last: pipe, data, model.
        host = (stage * dp + copy) * tp // per_node
        return hosts[host] if len(hosts) > 1 else hosts[0]

    return [tuple(Placed(chip(stage, copy), tp) for stage in range(stages)) for copy in range(dp)]


def _copies(row: Fields, column: Sequence[Placed], layers: Sequence[int]) -> Copies:
    dp = row.at("parallel").whole("dp")
    meshes: list[Mesh] = []
    chips: list[str] = []
    remaining = [*layers]
    for placed, stages in groupby(column):
        pp = len([*stages])
        own, remaining = remaining[:pp], remaining[pp:]
        meshes.append(Mesh(tp=placed.tp, dp=dp, pp=pp, layers=tuple((count,) for count in own)))
        chips.append(placed.chip)
    # DeepSpeed keeps as many micro-batches between unequal chips as elsewhere (its `TrainSchedule`).
    return Copies(HeteroLayout(tuple(meshes), extra_micro_batches=0), tuple(chips))


def layout_arguments(layout: HeteroLayout) -> dict[str, Any]:
    """Return the arguments (by dest) that give the engine this layout."""
    first = layout.meshes[0]
    return {
        "hetero_layout": layout.to_json(),
        "tensor_model_parallel_size": first.tp,
        "pipeline_model_parallel_size": len(layout.stages),
        "pipeline_model_parallel_layout": None,
        "num_virtual_stages_per_pipeline_rank": None,
        "account_for_embedding_in_pipeline_split": False,
        "account_for_loss_in_pipeline_split": False,
    }
