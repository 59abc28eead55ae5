"""Multi-latent attention (DeepSeek-V2 and -V3): queries, keys and values are projected from small latents."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from megatron.core.models.common.embeddings import YarnRotaryEmbedding
from megatron.core.tensor_parallel import CheckpointWithoutOutput
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from torch.utils.weak import WeakIdKeyDictionary

from megatron.flagscale.layers.rotary import cos_sin, rotate
from megatron.flagscale.layers.storage import compact

Projected = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

_embeddings: MutableMapping[Any, torch.nn.Module] = WeakIdKeyDictionary()
"""Rotary embeddings by configuration."""


class LatentAttention(MLASelfAttention):
    """Megatron's layer, with the same weights, names and checkpoints, for `LatentCore` as its core attention.

    All heads share the rotary part of the keys. With tensor parallelism, its gradient is the sum over the
    heads of all ranks; Megatron's layer omits that sum without TransformerEngine's linear layers
    (findings/megatron_latent_attention_without_te.sh).
    """

    rotary_pos_emb: Any

    def __init__(self, config: Any, *rest: Any, **named: Any) -> None:
        super().__init__(config, *rest, **named)
        # One for all layers: Megatron gives each its own, and remembers the angles of only 32 of them.
        self.rotary_pos_emb = _embeddings.setdefault(config, self.rotary_pos_emb)

    def _resolve_qk_norm_config(self, submodules: Any) -> dict[str, Any]:
        # Megatron's rules expect norms that are fused into TransformerEngine's linear layers.
        return {**vars(submodules)}

    def get_query_key_value_tensors(
        self,
        hidden_states: torch.Tensor,
        key_value_states: Any = None,
        position_ids: Any = None,
        packed_seq_params: Any = None,
        inference_context: Any = None,
        *,
        inference_params: Any = None,
    ) -> tuple[torch.Tensor, ...]:
        """Return what `LatentCore` takes as query, key and value, and the latents of queries and of keys.

        Raises:
            NotImplementedError: for inference and THD batches.
        """
        if packed_seq_params is not None or inference_context is not None or inference_params is not None:
            raise NotImplementedError("--transformer-impl torch supports neither inference nor THD batches")
        q_latent, kv_latent, k_rotary = self._latents(hidden_states)
        waves = self._rotation(hidden_states)
        if self.recompute_up_proj:
            self.qkv_up_checkpoint = CheckpointWithoutOutput()
            # The rotary keys are a part of a linear layer's output, the rest of which the norm has copied.
            given = compact(q_latent, kv_latent, k_rotary)
            projected = self.qkv_up_checkpoint.checkpoint(self._project, *given, *waves)
        else:
            projected = self._project(q_latent, kv_latent, k_rotary, *waves)
        return (*projected, q_latent, kv_latent)

    def _latents(self, hidden: torch.Tensor) -> Projected:
        """Return the normalized latents (this rank's part of the sequence) and the keys' rotary part."""
        config = self.config
        q_latent, kv = self._qkv_down_projection(hidden)
        if self.tp_group.size() > 1:
            kv = gather_from_tensor_model_parallel_region(kv, group=self.tp_group)
        kv_latent, k_rotary = kv.split([config.kv_lora_rank, config.qk_pos_emb_head_dim], -1)
        if self.tp_group.size() > 1:
            k_rotary = copy_to_tensor_model_parallel_region(k_rotary, group=self.tp_group)
            if config.sequence_parallel:
                kv_latent = scatter_to_sequence_parallel_region(kv_latent, group=self.tp_group)
        if config.q_lora_rank is not None:
            q_latent = self.q_layernorm(q_latent)
        return q_latent, self.kv_layernorm(kv_latent), k_rotary

    def _rotation(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosine and sine of the pairs' angles at each position, `[s, 1, 1, pairs]`."""
        length = self.rotary_pos_emb.get_rotary_seq_len(None, None, hidden, self.config, None)
        is_yarn = isinstance(self.rotary_pos_emb, YarnRotaryEmbedding)
        angles, scale = self.rotary_pos_emb(length) if is_yarn else (self.rotary_pos_emb(length), 1.0)
        return cos_sin(angles, hidden.dtype, scale)

    def _project(
        self,
        q_latent: torch.Tensor,
        kv_latent: torch.Tensor,
        k_rotary: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> Projected:
        q, _ = (self.linear_q_proj if self.config.q_lora_rank is None else self.linear_q_up_proj)(q_latent)
        kv, _ = self.linear_kv_up_proj(kv_latent)
        q, kv = (heads.unflatten(-1, (self.num_attention_heads_per_partition, -1)) for heads in (q, kv))
        query = rotate(q, cos, sin, latent=True, start=self.config.qk_head_dim)
        return query, kv, rotate(k_rotary[:, :, None], cos, sin, latent=True)
