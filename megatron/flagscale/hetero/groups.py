"""The process groups of a rank: those of its own mesh, and a few that span all meshes.

Megatron reads its groups from globals of `parallel_state`. They are filled here before the trainer starts,
which then finds model parallelism "already initialized".
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, NoReturn

import torch.distributed as dist
from megatron.core import parallel_state

from flagscale.checks.hetero.layout import AXES, EXPERT_AXES, HeteroLayout, groups
from megatron.flagscale.chips import HOST_BACKEND, chip

# name in `parallel_state` (`_GROUP` and so on follow): the axes along which its ranks differ
_DENSE = {
    "_TENSOR_MODEL_PARALLEL": ("tp",),
    "_CONTEXT_PARALLEL": ("cp",),
    "_DATA_PARALLEL": ("dp",),
    "_DATA_PARALLEL_WITH_CP": ("cp", "dp"),
    "_TENSOR_AND_CONTEXT_PARALLEL": ("tp", "cp"),
    "_TENSOR_AND_DATA_PARALLEL": ("tp", "dp"),
    "_TENSOR_AND_DATA_PARALLEL_WITH_CP": ("tp", "cp", "dp"),
}
_EXPERT = {
    "_EXPERT_MODEL_PARALLEL": ("ep",),
    "_EXPERT_TENSOR_PARALLEL": ("etp",),
    "_EXPERT_TENSOR_AND_MODEL_PARALLEL": ("etp", "ep"),
    "_EXPERT_DATA_PARALLEL": ("edp",),
}
_ALONE = ("_GTP_WEIGHT_REMAT_GROUP", "_EXPERT_GTP_WEIGHT_REMAT_GROUP")
_ALL = (
    # Gradient statistics and found-inf are summed over the group of the model's parts: here all ranks.
    "_MODEL_PARALLEL_GROUP",
    "_EXPERT_TENSOR_MODEL_PIPELINE_PARALLEL_GROUP",
    "_EXPERT_TENSOR_MODEL_PIPELINE_PARALLEL_GROUP_WITH_EGTP",
    "_INTRA_DISTRIBUTED_OPTIMIZER_INSTANCE_GROUP",
)
# The same group under other names, which differ only in forms of parallelism that meshes refuse.
_TWINS = {
    "_DATA_PARALLEL_GROUP": ("_DATA_PARALLEL_GROUP_WITH_GTP_REMAT",),
    "_DATA_PARALLEL_GROUP_WITH_CP": (
        "_DATA_PARALLEL_GROUP_WITH_CP_WITH_GTP_REMAT",
        "_INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP",
        "_INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP_WITH_GTP_REMAT",
    ),
    "_EXPERT_DATA_PARALLEL_GROUP": (
        "_EXPERT_DATA_PARALLEL_GROUP_WITH_GTP_REMAT",
        "_INTRA_PARTIAL_EXPERT_DATA_PARALLEL_GROUP",
        "_INTRA_PARTIAL_EXPERT_DATA_PARALLEL_GROUP_WITH_GTP_REMAT",
    ),
}
_GLOO = {
    "_DATA_PARALLEL": ("_DATA_PARALLEL_GROUP_GLOO",),
    "_DATA_PARALLEL_WITH_CP": (
        "_DATA_PARALLEL_GROUP_WITH_CP_GLOO",
        "_INTRA_PARTIAL_DATA_PARALLEL_GROUP_WITH_CP_GLOO",
    ),
    "_EXPERT_DATA_PARALLEL": (
        "_EXPERT_DATA_PARALLEL_GROUP_GLOO",
        "_INTRA_PARTIAL_EXPERT_DATA_PARALLEL_GROUP_GLOO",
    ),
}
"""The copies that move state through host memory."""
_RANKS = {
    "_TENSOR_MODEL_PARALLEL": "_TENSOR_MODEL_PARALLEL_GLOBAL_RANKS",
    "_CONTEXT_PARALLEL": "_CONTEXT_PARALLEL_GLOBAL_RANKS",
    "_DATA_PARALLEL": "_DATA_PARALLEL_GLOBAL_RANKS",
    "_DATA_PARALLEL_WITH_CP": "_DATA_PARALLEL_GLOBAL_RANKS_WITH_CP",
    "_EXPERT_MODEL_PARALLEL": "_EXPERT_MODEL_PARALLEL_RANKS",
}


class StageView(dist.ProcessGroup):
    """What stands for the pipeline group: the stage's index and the number of stages.

    Stages of unequal meshes have unequal numbers of ranks, so there is no group of one rank a stage. What
    asks for more than index and number is an error, rather than a wait for ever.
    """

    def __init__(self, stage: int, stages: int) -> None:
        super().__init__(stage, stages)

    def _refuse(self, *args: Any, **named: Any) -> NoReturn:
        raise RuntimeError("a pipeline over unequal meshes has no pipeline group to communicate in")

    allreduce = broadcast = allgather = reduce_scatter = alltoall = gather = scatter = _refuse
    send = recv = barrier = _allgather_base = _reduce_scatter_base = reduce = _refuse


class GroupFactory:
    """Makes each group once, in the same order on all ranks, and keeps those that this rank is in."""

    def __init__(self, backend: str | None, timeout: timedelta) -> None:
        self.backend, self.timeout = backend, timeout
        self._made: dict[tuple[int, ...], Any] = {}

    def make(self, every: Iterable[tuple[int, ...]]) -> tuple[Any, tuple[int, ...]]:
        """Return the one of disjoint groups that this rank is in, and its ranks; (None, ()) if in none."""
        found: tuple[Any, tuple[int, ...]] = (None, ())
        for ranks in every:
            if ranks not in self._made:
                self._made[ranks] = dist.new_group(list(ranks), timeout=self.timeout, backend=self.backend)
            if dist.get_rank() in ranks:
                found = self._made[ranks], ranks
        return found


def timeout_of(args: Any) -> timedelta:
    """Return how long a message may take in any group."""
    return timedelta(minutes=args.distributed_timeout_minutes)


def list_for_engine() -> None:
    """Let the engine know all groups that this rank is in, whose timeouts it may change later."""
    _set("_global_process_group_list", list(dist.distributed_c10d._world.pg_map))


def start(layout: HeteroLayout, args: Any, etp: int | None) -> None:
    """Join the job's ranks and fill the groups of `parallel_state`; call it on checked arguments.

    `etp`: the expert tensor parallel size as the user gave it for all meshes; None: each mesh's own tp.
    """
    timeout = timeout_of(args)
    backend = args.distributed_backend
    named: dict[str, Any] = {"world_size": args.world_size, "rank": args.rank, "timeout": timeout}
    chip().set_device(args.local_rank)
    device = chip().device()
    if device.index is not None and not layout.cpu_communication:
        named["device_id"] = device
    # What spans meshes goes through host memory then; groups inside a mesh name their own backend.
    dist.init_process_group(HOST_BACKEND if layout.cpu_communication else backend, **named)
    gloo = GroupFactory(HOST_BACKEND, timeout) if args.use_gloo_process_groups else None
    install(layout, GroupFactory(backend, timeout), gloo, etp)


def install(layout: HeteroLayout, factory: GroupFactory, gloo: GroupFactory | None, etp: int | None) -> None:
    """Fill the globals of `parallel_state` with this rank's groups."""
    place = layout.position(dist.get_rank())
    for number, mesh in enumerate(layout.meshes):
        first = layout.ranks(number)[0]
        dense = dict(zip(AXES, (mesh.tp, mesh.cp, mesh.dp, mesh.pp), strict=True))
        own_etp = etp or mesh.tp
        copies = mesh.ranks // (own_etp * mesh.ep * mesh.pp)
        expert = dict(zip(EXPERT_AXES, (own_etp, mesh.ep, copies, mesh.pp), strict=True))
        for names, sizes in ((_DENSE, dense), (_EXPERT, expert)):
            for name, along in names.items():
                every = list(groups(first, sizes, along))
                _fill(name, *factory.make(every))
                if gloo is not None and name in _GLOO:
                    copy, _ = (factory if factory.backend == HOST_BACKEND else gloo).make(every)
                    for one in _GLOO[name] if copy is not None else ():
                        _set(one, copy)
    alone, _ = factory.make((rank,) for rank in range(layout.world_size))
    for name in _ALONE:
        _set(name, alone)
        _set(name.replace("_GROUP", "_GLOBAL_RANKS"), [dist.get_rank()])
    for name in _ALL:
        _set(name, dist.group.WORLD)
    _set("_MODEL_PARALLEL_GLOBAL_RANKS", list(range(layout.world_size)))
    _set("_PIPELINE_MODEL_PARALLEL_GROUP", StageView(place.stage, len(layout.stages)))
    parallel_state.set_pipeline_model_parallel_rank(place.stage)
    parallel_state.set_pipeline_model_parallel_world_size(len(layout.stages))
    if layout.chunks > 1:
        parallel_state.set_virtual_pipeline_model_parallel_world_size(layout.chunks)
    parallel_state._set_global_memory_buffer()


def _fill(name: str, group: Any, ranks: tuple[int, ...]) -> None:
    if group is None:
        return
    with_cp = "_WITH_CP" if name.endswith("_WITH_CP") else ""
    full = f"{name.removesuffix('_WITH_CP')}_GROUP{with_cp}"
    for one in (full, *_TWINS.get(full, ())):
        _set(one, group)
    if name in _RANKS:
        _set(_RANKS[name], list(ranks))


def _set(name: str, value: Any) -> None:
    if not hasattr(parallel_state, name):
        raise RuntimeError(f"megatron.core.parallel_state has no {name}: written for another version")
    setattr(parallel_state, name, value)
