"""Norms of queries and keys over all heads together: `--qk-layernorm-across-heads` (OLMo-2).

The engine's `--qk-layernorm` (megatron-core 0.19.2) normalizes each head by itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from megatron.core.tensor_parallel import set_tensor_model_parallel_attributes
from megatron.core.transformer.utils import (
    ensure_metadata_has_dp_cp_group,
    make_sharded_tensors_for_checkpoint,
)

from megatron.flagscale.layers.norm import Norm
from megatron.flagscale.layers.self_attention import SelfAttention


class NormAcrossHeads(Norm):
    """Normalize heads `[s, b, heads, d]` together with those of the other tensor parallel ranks.

    A rank holds the weights of its own heads, `[heads * d]`. The ranks sum one number per token, forward and
    backward.
    """

    def __init__(self, config: Any, heads: int, width: int, group: dist.ProcessGroup) -> None:
        super().__init__(config, heads * width, config.layernorm_epsilon)
        self.group = group
        # Each rank sees all tokens of its heads: no other rank adds to the gradients of their weights.
        self.weight.sequence_parallel = False
        set_tensor_model_parallel_attributes(self.weight, is_parallel=True, dim=0, stride=1)

    def forward(self, heads: torch.Tensor) -> torch.Tensor:
        return super().forward(heads.flatten(2)).unflatten(2, heads.shape[2:])

    def sharded_state_dict(
        self, prefix: str = "", sharded_offsets: Any = (), metadata: dict[str, Any] | None = None
    ) -> Any:
        """Return the weights as a part of those of all heads, so that other layouts can read them."""
        return make_sharded_tensors_for_checkpoint(
            self.state_dict(keep_vars=True),
            prefix,
            {"weight": 0},
            sharded_offsets,
            tp_group=self.group,
            dp_cp_group=ensure_metadata_has_dp_cp_group(metadata)["dp_cp_group"],
        )


class NormedSelfAttention(SelfAttention):
    """Attention whose queries and keys are normalized across heads before they are turned."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        heads, groups = self.num_attention_heads_per_partition, self.num_query_groups_per_partition
        width, group = self.hidden_size_per_attention_head, self.pg_collection.tp
        self.query_norm = NormAcrossHeads(self.config, heads, width, group)
        self.key_norm = NormAcrossHeads(self.config, groups, width, group)

    def get_query_key_value_tensors(self, *given: Any, **named: Any) -> tuple[torch.Tensor, ...]:
        query, key, value = super().get_query_key_value_tensors(*given, **named)
        return self.query_norm(query), self.key_norm(key), value
