"""The attention core on `scaled_dot_product_attention`: flash, cuDNN, memory-efficient or CPU kernels."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.utils import is_layer_window_attention

from megatron.flagscale.layers.context import gather_sequence, local_positions, zigzag_attention

_CAUSAL = (AttnMaskType.causal, AttnMaskType.padding_causal, AttnMaskType.causal_bottom_right)


class Attention(MegatronModule):
    """Megatron's core attention: queries `[sq, b, heads, d]`, keys and values `[sk, b, groups, d]`, to
    `[sq, b, heads * d]`.

    A mask that is given (True: not seen) is the whole truth, `[b or 1, 1, sq, sk]`; without one, a causal
    layer hides what comes later and any other sees everything. With context parallel `sq` and `sk` are this
    rank's part, and a mask has its rows of the whole matrix.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(required_pgs=["tp", "cp"])
        self.cp_group = groups.cp
        self.ring = cp_comm_type != "all_gather"
        self.attn_mask_type = attn_mask_type
        # None is torch's default, one by the root of the width.
        self.scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        is_window = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        self.window = config.window_size if is_window else None

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: torch.Tensor | None = None,
        packed_seq_params: Any = None,
    ) -> torch.Tensor:
        if attention_bias is not None or packed_seq_params is not None:
            raise NotImplementedError("--transformer-impl torch takes neither attention bias nor THD batches")
        causal = (attn_mask_type or self.attn_mask_type) in _CAUSAL
        dropout = self.dropout if self.training else 0.0
        spread = self.cp_group.size() > 1
        is_plain = attention_mask is None and causal and not self.window and not dropout
        if spread and is_plain and query.size(-1) == value.size(-1):
            q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
            scale = q.size(-1) ** -0.5 if self.scale is None else self.scale
            return _hidden(zigzag_attention(q, k, v, scale, self.cp_group, self.ring))
        if spread:
            key, value = gather_sequence(key, self.cp_group), gather_sequence(value, self.cp_group)
        seen = None if attention_mask is None else ~attention_mask
        if self.window or (seen is None and causal and query.size(0) != key.size(0)):
            band = self._visible(query, key.size(0))
            seen = band if seen is None else seen & band
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        # As everywhere in Megatron: with sequence parallel the whole layer is under the tracker already.
        tracked = dropout and not self.config.sequence_parallel
        with tensor_parallel.get_cuda_rng_tracker().fork() if tracked else nullcontext():
            out = F.scaled_dot_product_attention(
                *(q, k, v, seen, dropout),
                is_causal=causal and seen is None,
                scale=self.scale,
                enable_gqa=q.size(1) != k.size(1),
            )
        return _hidden(out)

    def _visible(self, query: torch.Tensor, keys: int) -> torch.Tensor:
        """Return which keys each query sees, `[sq, sk]`: none after it, and none before its window."""
        count = query.size(0)
        if self.cp_group.size() > 1:
            where = local_positions(count, self.cp_group, query.device)
        else:  # the last query stands at the last key
            where = torch.arange(keys - count, keys, device=query.device)
        behind = where[:, None] - torch.arange(keys, device=query.device)
        reach = self.window[0] if self.window and self.window[0] >= 0 else keys
        return (behind >= 0) & (behind <= reach)


def _hidden(out: torch.Tensor) -> torch.Tensor:
    """Turn `[b, heads, s, d]` into `[s, b, heads * d]`."""
    return out.permute(2, 0, 1, 3).flatten(2)
