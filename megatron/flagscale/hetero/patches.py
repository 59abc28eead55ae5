"""The patches `hetero`: Megatron sums over groups that unequal meshes do not have, and offers no seam."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

from flagscale.checks.hetero.layout import HeteroLayout
from megatron.flagscale.patching import Patch


def _count_each_gradient_once(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def filtered(self: Any, params: Sequence[Any], param_filter: Any = None) -> Any:
        from megatron.core import mpu
        from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

        # The shards of the distributed optimizer are already disjoint.
        if not isinstance(self, DistributedOptimizer):
            is_first = mpu.get_data_parallel_rank(with_context_parallel=True) == 0
            is_first_expert = mpu.get_expert_data_parallel_rank() == 0
            params = [
                param
                for param in params
                if (is_first if getattr(param, "allreduce", True) else is_first_expert)
            ]
        return original(self, params, param_filter)

    return filtered


def _own_group_index(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def build(*positional: Any, **named: Any) -> Any:
        from megatron.core import mpu

        optimizer = original(*positional, **named)
        for one in getattr(optimizer, "chained_optimizers", [optimizer]):
            if hasattr(one, "data_parallel_group_idx"):
                stage, size = (
                    mpu.get_pipeline_model_parallel_rank(),
                    mpu.get_tensor_model_parallel_world_size(),
                )
                one.data_parallel_group_idx = stage * size + mpu.get_tensor_model_parallel_rank()
        return optimizer

    return build


def _sum_over_stages(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def sync(self: Any, metric_names: list[str], pg_collection: Any = None) -> None:
        import torch
        from megatron.core import mpu

        # First sum within each stage's own mesh, then over the stages, with one rank per stage contributing.
        alone = SimpleNamespace(
            pp=mpu.get_gtp_weight_remat_group(),
            dp_cp_gtp_remat=mpu.get_data_parallel_group(),
        )
        original(self, metric_names, alone)
        speaks = mpu.get_tensor_model_parallel_rank() == 0
        speaks = speaks and mpu.get_data_parallel_rank(with_context_parallel=True) == 0
        for name in metric_names:
            if name in self._metrics:
                values = self._metrics[name].values
                if not speaks:
                    values.zero_()
                torch.distributed.all_reduce(values)

    return sync


def _compare_first_copies(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def validate(rank_sharding: list[tuple[int, Any]]) -> Any:
        from megatron.core.dist_checkpointing.mapping import is_main_replica

        shapes = {tuple(shard.local_shape) for _, shard in rank_sharding if is_main_replica(shard.replica_id)}
        # Copies are not written; the written parts must still cover the whole tensor and have one shape.
        return original([one for one in rank_sharding if tuple(one[1].local_shape) in shapes])

    return validate


def _make_writers_on_the_last_rank(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def set_global_variables(args: Any, *positional: Any, **named: Any) -> Any:
        pretended = args.world_size
        args.world_size = HeteroLayout.from_json(args.hetero_layout).world_size
        try:
            return original(args, *positional, **named)
        finally:
            args.world_size = pretended

    return set_global_variables


_UNTIL = "Megatron accepts the groups of unequal meshes from its caller everywhere"

PATCHES = (
    Patch(
        "megatron.training.arguments:set_global_variables",
        _make_writers_on_the_last_rank,
        "The last rank writes TensorBoard and W&B, but arguments are checked with the number of ranks that "
        "equal meshes would have.",
        "hetero",
        until=_UNTIL,
    ),
    Patch(
        "megatron.core.optimizer.optimizer:MegatronOptimizer._filter_grads_for_norm",
        _count_each_gradient_once,
        "Gradient statistics are summed over all ranks here, but data parallel ranks hold copies of a layer.",
        "hetero",
        until=_UNTIL,
    ),
    Patch(
        "megatron.training.training:get_megatron_optimizer",
        _own_group_index,
        "It numbers a checkpoint's shards by the rank in the model parallel group, which here is all ranks.",
        "hetero",
        until=_UNTIL,
    ),
    Patch(
        "megatron.training.training:report_theoretical_memory",
        lambda original: lambda *positional, **named: None,
        "It divides the number of ranks by the degrees of one mesh: a wrong figure, or a division by zero.",
        "hetero",
        until=_UNTIL,
    ),
    Patch(
        "megatron.core.dist_checkpointing.validation:_validate_sharding_for_key",
        _compare_first_copies,
        "It requires all copies of a weight to be split alike, but meshes split tied embeddings differently.",
        "hetero",
        until="copies of a weight may be split differently",
    ),
    Patch(
        "megatron.core.transformer.moe.moe_logging:MoEMetricsTracker._sync_metrics",
        _sum_over_stages,
        "It sums router losses over the pipeline group with one rank per stage, which does not exist here.",
        "hetero",
        until=_UNTIL,
    ),
)
