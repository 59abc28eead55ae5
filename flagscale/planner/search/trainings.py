"""The plans that a search has found: as trainings, as the engine's arguments, with their estimates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from flagscale.checks.hetero import keys
from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.checks.recompute import GRANULARITY, NUM_LAYERS, RecomputeSchedule, Setting
from flagscale.frozen import asdict, dataclass, replace
from flagscale.planner.chips import Chip
from flagscale.planner.memory.stage_memory import StageMemory
from flagscale.planner.reading import padded_vocabulary
from flagscale.planner.search.cluster import Cluster
from flagscale.planner.search.mesh_options import SEARCHED, Mode
from flagscale.planner.time.step_time import StepTime
from flagscale.planner.training import Block, Recompute, Training

if TYPE_CHECKING:  # it imports numpy
    from flagscale.planner.search.layer_split import Split


@dataclass(frozen=True)
class Rated:
    """One plan and its estimate."""

    training: Training
    arguments: Mapping[str, Any]
    """For the task file, by dest."""
    time: StepTime
    memory: tuple[StageMemory, ...]
    mode: Mode
    split: Split
    """With the quick rating of the search."""

    @property
    def seconds(self) -> float:
        return self.time.seconds

    @property
    def tokens_s(self) -> float:
        return self.training.batch * self.training.sequence / self.seconds


def searched_training(
    template: Training, cluster: Cluster, mode: Mode, split: Split, values: Mapping[str, Any]
) -> Training:
    """Return the training of a split; `values`: the user's arguments (by dest), as far as known."""
    parts, v = split.pipeline.parts, split.pipeline.chunks
    pools = [cluster.pools[part.pool] for part in parts]
    meshes, blocks, taken = [], [], 0
    for part, pool in zip(parts, pools, strict=True):
        layers = tuple(_even(count, v) for count in split.layers[taken : taken + part.pp])
        taken += part.pp
        degrees = part.degrees
        sp = degrees.sequence_parallel
        meshes.append(Mesh(degrees.tp, degrees.cp, degrees.ep, degrees.dp, part.pp, layers, sp, pool.type))
        blocks.append(Block(pool.chip, degrees.micro_batch, degrees.etp, sp, pool.per_host))
    routes = [cluster.route(*pair) for pair in pairwise(pools)]
    layout = HeteroLayout(tuple(meshes), any(route.through_host for route in routes), split.pipeline.extra)
    padded = template.padded_vocabulary
    if not values.get("padded_vocab_size"):
        padded = padded_vocabulary(values, layout, template.model.vocabulary)
    return replace(
        template,
        layout=layout,
        blocks=tuple(blocks),
        padded_vocabulary=padded,
        recompute=_recompute(mode, split, layout),
        prediction_chunk=None,
        group=0,
        crossings=tuple(route.link for route in routes),
    )


def _even(count: int, parts: int) -> tuple[int, ...]:
    """Divide a number as evenly as possible, the larger parts first."""
    return tuple(count // parts + (number < count % parts) for number in range(parts))


def _recompute(mode: Mode, split: Split, layout: HeteroLayout) -> Recompute:
    if mode.modules:
        return Recompute(modules=mode.modules)
    if not any(split.recomputed):
        return Recompute()
    # Of each chunk, in the order of the layers: the number of the chunk in its stage comes first.
    each = [_even(count, layout.chunks) for count in split.recomputed]
    counts = [of_stage[chunk] for chunk in range(layout.chunks) for of_stage in each]
    if len({*counts}) == 1:
        return Recompute(full=Setting("full", "block", counts[0]))
    m = split.pipeline.micro_batches
    tables = {
        GRANULARITY: tuple((int(count > 0),) * m for count in counts),
        NUM_LAYERS: tuple((max(count, 1),) * m for count in counts),
    }
    # A stage without recomputation has a number, too, which nobody reads.
    default = Setting("full", "block", 1)
    return Recompute(full=default, schedule=RecomputeSchedule(tables, default))


def searched_arguments(training: Training, is_default_etp: bool = True) -> dict[str, Any]:
    """Return the keys of the task file for all that was searched, by dest; absent ones are to be unset.

    `is_default_etp`: whether experts have the tensor parallelism of their mesh.
    """
    layout, model = training.layout, training.model
    found: dict[str, Any] = {}
    if len(layout.meshes) == 1:
        found |= layout.ordinary_arguments()
        name = "pipeline_model_parallel_layout"
        if name in found and model.prediction_heads:
            found[name] = f"{found[name][:-1]}{'m' * model.prediction_heads}L"
    else:
        found |= {keys.ENABLE: True, keys.MESHES: [_written(mesh) for mesh in layout.meshes]}
        if layout.chunks == 1:
            found[keys.EXTRA] = layout.extra_micro_batches
        if layout.cpu_communication:
            found[keys.CPU] = True
    found["micro_batch_size"] = training.blocks[0].micro_batch
    found["global_batch_size"] = training.batch
    if not is_default_etp:
        found["expert_tensor_parallel_size"] = training.blocks[0].expert_tp
    return found | _recompute_arguments(training.recompute)


def _written(mesh: Mesh) -> dict[str, Any]:
    """Return a mesh in the readable form of `hetero_process_meshes`."""
    found = {name: value for name, value in asdict(mesh).items() if value not in (1, "", None)}
    if mesh.sp is not None and mesh.tp == 1:
        del found["sp"]
    elif mesh.sp:
        found["sp"] = True
    found["layers"] = [list(of) if len({*of}) > 1 or len(of) > 1 else of[0] for of in mesh.layers]
    order = ("type", "tp", "cp", "ep", "dp", "pp", "sp", "layers")
    return {name: found[name] for name in order if name in found}


def _recompute_arguments(recompute: Recompute) -> dict[str, Any]:
    if recompute.modules:
        return {"recompute_granularity": "selective", "recompute_modules": list(recompute.modules)}
    if recompute.full is None:
        return {}
    found: dict[str, Any] = {
        "recompute_granularity": "full",
        "recompute_method": recompute.full.method,
        "recompute_num_layers": recompute.full.num_layers,
    }
    if recompute.schedule is not None:
        found |= {name: _rows(table) for name, table in recompute.schedule.tables.items()}
    return found


def _rows(table: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return rows `[stages, micro-batches, value]`, one for each run of equal stages."""
    rows: list[list[int]] = []
    for values in table:
        if rows and rows[-1][2] == values[0]:
            rows[-1][0] += 1
        else:
            rows.append([1, len(values), values[0]])
    return rows


def with_searched(values: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return arguments (by dest) in which those that were searched are replaced."""
    return {**values, **SEARCHED, **found}


def chip_of_stage(training: Training, stage: int) -> Chip:
    """Return the chip of the ranks of a stage, by its number."""
    return training.blocks[training.layout.stages[stage].mesh].chip
