"""Heterogeneous layouts: unequal meshes joined end to end into one pipeline. Values only; the rules that a
layout must keep are in `rules.py`.

A mesh is an ordinary block of ranks with its own tensor (tp), context (cp), expert (ep), data (dp) and
pipeline (pp) degrees. Ranks are numbered mesh after mesh and, inside a mesh, as Megatron does: tp fastest,
then cp, dp, pp.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import pairwise
from math import lcm, prod
from typing import Any

DEGREES = ("tp", "cp", "ep", "dp", "pp")
"""The order of FlagScale v0.6.0's flat list of five numbers per mesh."""

AXES = ("tp", "cp", "dp", "pp")
EXPERT_AXES = ("etp", "ep", "edp", "pp")
"""The same ranks as the experts see them; edp: copies of an expert."""


@dataclass(frozen=True)
class Mesh:
    """One block of equal ranks; `layers` holds, for each of its pipeline stages, the layers of every chunk.

    A stage of an interleaved pipeline has several chunks of the model; other stages have one.
    """

    tp: int = 1
    cp: int = 1
    ep: int = 1
    dp: int = 1
    pp: int = 1
    layers: tuple[tuple[int, ...], ...] = ()
    sp: bool | None = None
    """Sequence parallel; None: as the argument `sequence_parallel` says."""
    type: str = ""
    """The hosts' type in the hostfile; empty: any."""

    @property
    def ranks(self) -> int:
        return self.tp * self.cp * self.dp * self.pp

    def __str__(self) -> str:
        return (
            " x ".join(f"{name}{size}" for name in DEGREES if (size := getattr(self, name)) > 1) or "1 rank"
        )


@dataclass(frozen=True)
class RankPosition:
    """The position of a rank: its mesh, its stage in the whole pipeline, and its indices inside the stage."""

    mesh: int
    stage: int
    tp: int
    cp: int
    dp: int


@dataclass(frozen=True)
class Stage:
    """One pipeline stage: consecutive ranks, tp fastest, then cp, then dp; `chunks`: the layers of each."""

    index: int
    mesh: int
    first_rank: int
    chunks: tuple[int, ...]
    tp: int
    cp: int
    dp: int

    @property
    def ranks(self) -> range:
        return range(self.first_rank, self.first_rank + self.tp * self.cp * self.dp)

    @property
    def layers(self) -> int:
        return sum(self.chunks)


@dataclass(frozen=True)
class HeteroLayout:
    """The whole layout."""

    meshes: tuple[Mesh, ...]
    cpu_communication: bool = False
    """Between stages of different meshes, copy through host memory."""
    extra_micro_batches: int = 1
    """More micro-batches in flight than 1F1B has, for each boundary between meshes."""

    @property
    def world_size(self) -> int:
        return sum(mesh.ranks for mesh in self.meshes)

    def ranks(self, mesh: int) -> range:
        """Return the global ranks of a mesh."""
        first = sum(one.ranks for one in self.meshes[:mesh])
        return range(first, first + self.meshes[mesh].ranks)

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        found: list[Stage] = []
        first = 0
        for number, mesh in enumerate(self.meshes):
            for chunks in mesh.layers:
                found.append(Stage(len(found), number, first, chunks, mesh.tp, mesh.cp, mesh.dp))
                first += mesh.tp * mesh.cp * mesh.dp
        return tuple(found)

    @property
    def chunks(self) -> int:
        """The model chunks of every stage; 1: the pipeline is not interleaved."""
        return len(self.stages[0].chunks)

    @property
    def boundaries(self) -> tuple[tuple[Stage, Stage], ...]:
        """The pairs of stages that exchange activations; if interleaved, also the last and the first."""
        crossed = tuple(pairwise(self.stages))
        return (*crossed, (self.stages[-1], self.stages[0])) if self.chunks > 1 else crossed

    @cached_property
    def warm_ups(self) -> tuple[int, ...]:
        """How many micro-batches each stage of a pipeline that is not interleaved computes ahead.

        In 1F1B that is one for each later stage: every stage then has its next micro-batch at the moment it
        needs it, if messages take no time. Between meshes they do take time; an extra micro-batch hides it.
        """
        found = [0]
        for target, source in pairwise(reversed(self.stages)):
            found.append(found[-1] + 1 + (source.mesh != target.mesh) * self.extra_micro_batches)
        return tuple(reversed(found))

    def position(self, rank: int) -> RankPosition:
        """Return the position of a global rank; raises ValueError if there is no such rank."""
        for stage in self.stages:
            if rank in stage.ranks:
                rest, tp = divmod(rank - stage.first_rank, stage.tp)
                dp, cp = divmod(rest, stage.cp)
                return RankPosition(stage.mesh, stage.index, tp, cp, dp)
        raise ValueError(f"the layout has only {self.world_size} ranks, not a rank {rank}")

    @property
    def pipeline_layout(self) -> str:
        """The layers of all stages as Megatron's `pipeline_model_parallel_layout` writes them: `Ett|tL`.

        Chunk by chunk, the first one of all stages first.
        """
        parts = ("t" * stage.chunks[chunk] for chunk in range(self.chunks) for stage in self.stages)
        return f"E{'|'.join(parts)}L"

    def micro_batch_size(self, mesh: int, of_first: int) -> int:
        """Return the micro-batch size of a mesh, given that of the first one: all steps are equal."""
        return self.meshes[0].dp * of_first // self.meshes[mesh].dp

    def arguments(self, values: Mapping[str, Any], mesh: int) -> dict[str, Any]:
        """Return the arguments (by dest) that differ on the ranks of a mesh from `values`, given for all."""
        own = self.meshes[mesh]
        found: dict[str, Any] = {
            "tensor_model_parallel_size": own.tp,
            "context_parallel_size": own.cp,
            "expert_model_parallel_size": own.ep,
            "pipeline_model_parallel_size": len(self.stages),
            "pipeline_model_parallel_layout": self.pipeline_layout,
            "sequence_parallel": own.tp > 1
            and (values.get("sequence_parallel") if own.sp is None else own.sp),
            # The same padded vocabulary everywhere: the engine rounds up to a multiple of this times tp.
            "make_vocab_size_divisible_by": values["make_vocab_size_divisible_by"]
            * lcm(*(one.tp for one in self.meshes))
            // own.tp,
        }
        for name in ("micro_batch_size", "eval_micro_batch_size"):
            if values.get(name) is not None:
                found[name] = self.micro_batch_size(mesh, values[name])
        return found

    def ordinary_arguments(self) -> dict[str, Any]:
        """Return the arguments (by dest) of the ordinary layout that a single mesh is."""
        (mesh,) = self.meshes
        found: dict[str, Any] = {
            "tensor_model_parallel_size": mesh.tp,
            "context_parallel_size": mesh.cp,
            "expert_model_parallel_size": mesh.ep,
            "pipeline_model_parallel_size": mesh.pp,
        }
        if len({layers for stage in self.stages for layers in stage.chunks}) > 1:
            found["pipeline_model_parallel_layout"] = self.pipeline_layout
        elif self.chunks > 1:
            found["num_virtual_stages_per_pipeline_rank"] = self.chunks
        if mesh.sp is not None:
            found["sequence_parallel"] = mesh.sp
        return found

    def engine_world_size(self, mesh: int) -> int:
        """Return the world size that makes the engine's own arithmetic right on the ranks of a mesh.

        It is that of a job whose stages are all like this mesh's; it gives the mesh's data parallel size and
        the number of micro-batches.
        """
        own = self.meshes[mesh]
        return own.tp * own.cp * own.dp * len(self.stages)

    def __str__(self) -> str:
        return " | ".join(str(mesh) for mesh in self.meshes)

    def to_json(self) -> str:
        """Return the layout as one word, for the workers' argument `--hetero-layout`."""
        meshes = [
            {name: value for name, value in asdict(mesh).items() if value not in ("", None)}
            for mesh in self.meshes
        ]
        tree = {**asdict(self), "meshes": meshes}
        return json.dumps(tree, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> HeteroLayout:
        """Read a layout back; raises ValueError if the text is not a layout."""
        try:
            tree = json.loads(text)
            meshes = tuple(
                Mesh(**{**mesh, "layers": tuple(map(tuple, mesh["layers"]))}) for mesh in tree["meshes"]
            )
            return HeteroLayout(**{**tree, "meshes": meshes})
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a layout of meshes: {error}") from None


def groups(first_rank: int, sizes: Mapping[str, int], along: Sequence[str]) -> Iterator[tuple[int, ...]]:
    """Yield the groups of ranks of a block that differ along some axes only.

    `sizes`: the sizes of all axes, the fastest first; the block's ranks are consecutive.
    """
    strides = {name: prod(list(sizes.values())[:number]) for number, name in enumerate(sizes)}

    def offsets(names: Sequence[str]) -> list[int]:
        found = [0]
        for name in names:
            found = [base + step * strides[name] for step in range(sizes[name]) for base in found]
        return found

    for start in offsets([name for name in sizes if name not in along]):
        yield tuple(
            first_rank + start + offset for offset in offsets([name for name in sizes if name in along])
        )


def with_layers(meshes: Sequence[Mesh], split: Sequence[tuple[int, ...]]) -> tuple[Mesh, ...]:
    """Return the meshes with the layers of all stages, given as one list, distributed over them."""
    found, taken = [], 0
    for mesh in meshes:
        found.append(replace(mesh, layers=tuple(split[taken : taken + mesh.pp])))
        taken += mesh.pp
    return tuple(found)
