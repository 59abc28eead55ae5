"""The attention core on `scaled_dot_product_attention`: flash, cuDNN, memory-efficient or CPU kernels."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import tensor_parallel
from megatron.core.dist_checkpointing.mapping import ShardedStateDict
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.utils import (
    is_layer_window_attention,
    make_sharded_tensors_for_checkpoint,
)

from flagscale.checks.gemma import ATTENTION_CAP
from megatron.flagscale.chips import chip
from megatron.flagscale.layers.context import gather_sequence, local_chunks, zigzag_attention
from megatron.flagscale.layers.documents import document_attention
from megatron.flagscale.layers.exchange import to_heads, to_sequence, whole_mask
from megatron.flagscale.layers.kernels import causal_attention
from megatron.flagscale.layers.sinks import sink_attention
from megatron.flagscale.layers.soft_cap import capped_attention
from megatron.flagscale.layers.storage import compact

_CAUSAL = (AttnMaskType.causal, AttnMaskType.padding_causal, AttnMaskType.causal_bottom_right)


class Attention(MegatronModule):
    """Megatron's core attention, from queries `[sq, b, heads, d]`, keys `[sk, b, groups, d]` and values
    `[sk, b, groups, dv]` to `[sq, b, heads * dv]`.

    If a mask `[b or 1, 1, sq, sk]` is given (True: hidden), it replaces the rule of the layer: a causal layer
    hides later positions, any other hides nothing. With context parallelism, `sq` and `sk` are this rank's
    part, and a mask has this rank's rows of the whole matrix. Instead of a mask, a causal layer accepts the
    start positions of documents in the whole sequence, integers `[b, s]` (see documents.py): other documents
    are then hidden.

    With `softmax_type: learnable`, each head has a sink (see sinks.py): `softmax_offset [heads of the rank]`.
    """

    def __init__(
        self,
        config: Any,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        attention_dropout: float | None = None,
        softmax_scale: float | None = None,
        k_channels: int | None = None,
        v_channels: int | None = None,
        cp_comm_type: str | None = None,
        pg_collection: ProcessGroupCollection | None = None,
    ) -> None:
        super().__init__(config=config)
        groups = pg_collection or ProcessGroupCollection.use_mpu_process_groups(["tp", "cp", "hcp"])
        self.exchange, self.cp_group = _parts_of(groups, cp_comm_type)
        self.ring = cp_comm_type != "all_gather"
        self.attn_mask_type = attn_mask_type
        # None means torch's default, one over the square root of the width.
        self.scale = softmax_scale
        self.dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        is_window = is_layer_window_attention(config.window_size, config.window_attn_skip_freq, layer_number)
        self.window = config.window_size if is_window else None
        self.cap: float | None = getattr(config, ATTENTION_CAP, None)
        self.softmax_offset: torch.nn.Parameter | None = None
        if config.softmax_type == "learnable":
            self.softmax_offset = self._sinks(groups)

    def _sinks(self, groups: ProcessGroupCollection) -> torch.nn.Parameter:
        self.tp_group = groups.tp
        heads = self.config.num_attention_heads // groups.tp.size()
        made = torch.empty(heads, device=chip().device(), dtype=self.config.params_dtype)
        sinks = torch.nn.Parameter(made)
        tensor_parallel.set_tensor_model_parallel_attributes(sinks, is_parallel=True, dim=0, stride=1)
        if self.config.perform_initialization:
            self.config.init_method(sinks)
        return sinks

    def sharded_state_dict(
        self,
        prefix: str = "",
        sharded_offsets: tuple[tuple[int, int, int], ...] = (),
        metadata: dict[str, Any] | None = None,
    ) -> ShardedStateDict:
        """Return the sinks, cut by heads, under the engine's name; nothing if there are none."""
        if self.softmax_offset is None:
            return {}
        assert metadata is not None
        own = {"softmax_offset": self.softmax_offset}
        return make_sharded_tensors_for_checkpoint(
            *(own, prefix, {"softmax_offset": 0}, sharded_offsets),
            tp_group=self.tp_group,
            dp_cp_group=metadata["dp_cp_group"],
        )

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
            raise NotImplementedError(
                "--transformer-impl torch supports neither attention bias nor THD batches"
            )
        causal = (attn_mask_type or self.attn_mask_type) in _CAUSAL
        mask, starts = _mask_or_starts(attention_mask)
        if self.exchange is None:
            return self._attend(query, key, value, mask, starts, causal)
        mask = None if mask is None else whole_mask(mask, self.exchange)
        query, key, value = to_heads(query, key, value, self.exchange)
        return to_sequence(self._attend(query, key, value, mask, starts, causal), self.exchange)

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        starts: torch.Tensor | None,
        causal: bool,
    ) -> torch.Tensor:
        """Return the attention of the queries, which are split over `cp_group` if there is one."""
        # After rotary embeddings, the values are all that is left of the linear layer's output.
        query, key, value = compact(query, key, value)
        dropout = self.dropout if self.training else 0.0
        if self.softmax_offset is not None:
            return self._with_sinks(query, key, value, mask, starts, causal, dropout)
        is_plain = mask is None and causal and not self.window and not dropout and self.cap is None
        scale = query.size(-1) ** -0.5 if self.scale is None else self.scale
        if self.cp_group and is_plain and starts is None:
            q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
            return _hidden(zigzag_attention(q, k, v, scale, self.cp_group, self.ring))
        if self.cp_group:
            key, value = gather_sequence(key, self.cp_group), gather_sequence(value, self.cp_group)
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        if self.cap is not None:
            visible = functools.partial(self._seen, query, key, mask, starts, causal)
            return _hidden(capped_attention(q, k, v, visible, scale, self.cap))
        if is_plain and starts is not None:
            return _hidden(document_attention(q, k, v, starts, self._chunks(query, key), scale))
        is_usual = query.size(-1) == value.size(-1) or chip().sdpa_takes_other_widths
        if is_plain and not is_usual and not self.cp_group and query.size(0) == key.size(0):
            return _hidden(causal_attention(q, k, v, scale))
        # Kernels have a plain causal mask of their own, if there are as many queries as keys.
        hides_later = causal and query.size(0) != key.size(0)
        seen = self._seen(query, key, mask, starts, hides_later)
        # As everywhere in Megatron, with sequence parallelism the whole layer already runs under the tracker.
        tracked = dropout and not self.config.sequence_parallel
        with tensor_parallel.get_cuda_rng_tracker().fork() if tracked else nullcontext():
            out = F.scaled_dot_product_attention(
                *(q, k, v, seen, dropout),
                is_causal=causal and seen is None,
                scale=self.scale,
                enable_gqa=q.size(1) != k.size(1),
            )
        return _hidden(out)

    def _seen(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        mask: torch.Tensor | None,
        starts: torch.Tensor | None,
        causal: bool,
    ) -> torch.Tensor | None:
        """Return which keys each query attends to, `[sq, sk]` or `[b, 1, sq, sk]`; None if all of them."""
        seen = None if mask is None else ~mask
        if self.window or starts is not None or (seen is None and causal):
            band = self._visible(query, key, starts)
            seen = band if seen is None else seen & band
        return seen

    def _with_sinks(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
        starts: torch.Tensor | None,
        causal: bool,
        dropout: float,
    ) -> torch.Tensor:
        is_whole = not self.cp_group and self.exchange is None and query.size(0) == key.size(0)
        if mask is not None or dropout or not causal or not is_whole:
            raise NotImplementedError(
                "`softmax_type: learnable` with --transformer-impl torch does not support masks, "
                "attention dropout, context parallelism or cached keys"
            )
        assert self.softmax_offset is not None
        q, k, v = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        scale = query.size(-1) ** -0.5 if self.scale is None else self.scale
        before = self.window[0] if self.window and self.window[0] >= 0 else None
        return _hidden(sink_attention(q, k, v, self.softmax_offset, scale, before, starts))

    def _chunks(self, query: torch.Tensor, key: torch.Tensor) -> tuple[tuple[int, int], ...]:
        """Return the queries' positions in `key`'s sequence; the last ones without context parallelism."""
        count, keys = query.size(0), key.size(0)
        return local_chunks(count, self.cp_group) if self.cp_group else ((keys - count, keys),)

    def _visible(self, query: torch.Tensor, key: torch.Tensor, starts: torch.Tensor | None) -> torch.Tensor:
        """Return which keys each query attends to, `[sq, sk]` or `[b, 1, sq, sk]`: none after itself, none
        before its window, and none before its document."""
        where = torch.cat([torch.arange(first, end) for first, end in self._chunks(query, key)])
        keys = torch.arange(key.size(0))
        behind = where[:, None] - keys
        reach = self.window[0] if self.window and self.window[0] >= 0 else key.size(0)
        band = (behind >= 0) & (behind <= reach)
        if starts is not None:
            band = band & (keys >= starts[:, None, where, None])
        return band.to(query.device)


def _parts_of(
    groups: ProcessGroupCollection, cp_comm_type: str | None
) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]:
    """Return the ranks that exchange heads for sequence, and those that the sequence stays split over."""
    if cp_comm_type == "a2a+p2p":
        exchange, split = groups.hcp
    else:
        exchange, split = (groups.cp, None) if cp_comm_type == "a2a" else (None, groups.cp)
    return _if_several(exchange), _if_several(split)


def _if_several(group: dist.ProcessGroup | None) -> dist.ProcessGroup | None:
    return group if group and group.size() > 1 else None


def _mask_or_starts(given: torch.Tensor | None) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return (given, None) if given is None or given.dtype == torch.bool else (None, given)


def _hidden(out: torch.Tensor) -> torch.Tensor:
    """Return a tensor `[b, heads, s, d]` as `[s, b, heads * d]`."""
    return out.permute(2, 0, 1, 3).flatten(2)
