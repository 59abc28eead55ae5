"""Sums over all meshes at the end of a step: token counts and the gradients of tied embeddings."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import mpu
from megatron.core.utils import get_attr_wrapped_model

from flagscale.checks.hetero.layout import HeteroLayout


class Finalizer:
    """Replaces Megatron's `finalize_model_grads` in a pipeline over meshes, through the model's config.

    Megatron computes both sums over groups with one rank per stage, which unequal meshes do not have.
    """

    def __init__(self, layout: HeteroLayout, timeout: timedelta) -> None:
        ends = layout.stages[0].ranks, layout.stages[-1].ranks
        # All ranks must call `new_group`, but only the first and the last stage are members.
        self.ends = dist.new_group([*ends[0], *ends[1]], timeout=timeout)
        self.is_end = dist.get_rank() in (*ends[0], *ends[1])

    def __call__(
        self,
        model: list[Any],
        num_tokens: torch.Tensor | None = None,
        pg_collection: Any = None,
        force_all_reduce: bool = False,
    ) -> None:
        from megatron.core.distributed import finalize_model_grads

        tied = self._tied(model)
        # If the gradient were sharded, no rank would hold all of it.
        sharded = model[0].ddp_config.use_distributed_optimizer
        finalize_model_grads(
            model, None, pg_collection=pg_collection, force_all_reduce=force_all_reduce or (tied and sharded)
        )
        weight = self._tied_weight(model)
        if weight is not None:
            weight.main_grad.copy_(self._sum_of_ends(weight.main_grad))
        if num_tokens is not None:
            self._scale_by_tokens(model, num_tokens)

    def __deepcopy__(self, memo: Any) -> Finalizer:
        # Expert layers copy the model's config, which holds this object; a process group cannot be copied.
        return self

    def copy_tied(self, model: list[Any]) -> list[Any]:
        """Copy the first stage's embeddings to the last, as Megatron does at startup; a `pre_wrap_hook`."""
        weight = self._tied_weight(model)
        if weight is not None:
            own = weight.detach() if mpu.is_pipeline_first_stage() else torch.zeros_like(weight)
            with torch.no_grad():
                weight.copy_(self._sum_of_ends(own))
        return model

    @staticmethod
    def _tied(model: list[Any]) -> bool:
        return bool(get_attr_wrapped_model(model[0], "share_embeddings_and_output_weights"))

    def _tied_weight(self, model: list[Any]) -> torch.nn.Parameter | None:
        """Return this rank's part of the embeddings if another stage holds a copy of them."""
        if not self.is_end or not self._tied(model):
            return None
        # If the pipeline is interleaved, its ends are the first stage's first chunk and the last one's last.
        chunk = model[0] if mpu.is_pipeline_first_stage() else model[-1]
        module = get_attr_wrapped_model(chunk, "pre_process", return_model_obj=True)
        weight: torch.nn.Parameter = module.shared_embedding_or_output_weight()
        return weight

    def _sum_of_ends(self, part: torch.Tensor) -> torch.Tensor:
        """Return this rank's rows of the sum over both stages, which may split the rows differently."""
        size, rank = mpu.get_tensor_model_parallel_world_size(), mpu.get_tensor_model_parallel_rank()
        whole = part.new_zeros(part.size(0) * size, *part.shape[1:])
        own = slice(rank * part.size(0), (rank + 1) * part.size(0))
        if mpu.get_data_parallel_rank(with_context_parallel=True) == 0:
            whole[own] = part
        dist.all_reduce(whole, group=self.ends)
        return whole[own]

    @staticmethod
    def _scale_by_tokens(model: list[Any], num_tokens: torch.Tensor) -> None:
        """Divide the gradients by the number of tokens in the whole batch, as counted by the last stage."""
        counts = mpu.is_pipeline_last_stage() and mpu.get_tensor_model_parallel_rank() == 0
        total = num_tokens.clone() if counts else torch.zeros_like(num_tokens)
        dist.all_reduce(total)
        for chunk in model:
            chunk.scale_gradients(1.0 / total.clamp(min=1))


def use_finalizer(model_config: Any, layout: HeteroLayout, timeout: timedelta) -> None:
    """Make a model that is built from `model_config` sum over all meshes."""
    finalizer = Finalizer(layout, timeout)
    model_config.transformer.finalize_model_grads_func = finalizer
    model_config.pre_wrap_hooks.append(finalizer.copy_tied)
