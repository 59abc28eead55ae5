"""Multi-latent attention (DeepSeek-V2 and -V3): queries, keys and values are projected from small latents."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from megatron.core.models.common.embeddings import YarnRotaryEmbedding
from megatron.core.tensor_parallel import CheckpointWithoutOutput
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_tensor_model_parallel_region,
    scatter_to_sequence_parallel_region,
)
from megatron.core.transformer.multi_latent_attention import MLASelfAttention


class LatentAttention(MLASelfAttention):
    """Megatron's layer, with the same weights, names and checkpoints.

    Of the queries, keys and values, one copy each is kept for the backward pass. The rotary part of the keys
    is the same for all heads: with tensor parallelism, its gradient is the sum over the ranks' heads, which
    Megatron's layer omits unless TransformerEngine's linear layers compute the latents.
    """

    def _resolve_qk_norm_config(self, submodules: Any) -> dict[str, Any]:
        # Megatron's rules expect norms that are fused into TransformerEngine's linear layers.
        return vars(submodules)

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
        """Return queries, keys `[s, b, heads, width]`, values, and the latents of queries and keys.

        Raises:
            NotImplementedError: for inference and THD batches.
        """
        if packed_seq_params is not None or inference_context is not None or inference_params is not None:
            raise NotImplementedError("--transformer-impl torch supports neither inference nor THD batches")
        latents = self._latents(hidden_states)
        cos, sin = self._rotation(hidden_states)
        if self.recompute_up_proj:
            self.qkv_up_checkpoint = CheckpointWithoutOutput()
            made = self.qkv_up_checkpoint.checkpoint(self._project, *latents, cos, sin)
        else:
            made = self._project(*latents, cos, sin)
        return (*made, *latents[:2])

    def _latents(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the normalized latents, this rank's part of the sequence, and the whole rotary keys."""
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
        """Return cosine and sine of each position's angles, `[s, 1, 1, angles]`."""
        length = self.rotary_pos_emb.get_rotary_seq_len(None, None, hidden, self.config, None)
        if isinstance(self.rotary_pos_emb, YarnRotaryEmbedding):
            angles, scale = self.rotary_pos_emb(length)
        else:
            angles, scale = self.rotary_pos_emb(length), 1.0
        angles = angles[..., : angles.size(-1) // 2]  # the second half repeats the first
        return tuple((scale * wave(angles)).to(hidden.dtype) for wave in (torch.cos, torch.sin))

    def _project(
        self,
        q_latent: torch.Tensor,
        kv_latent: torch.Tensor,
        k_rotary: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        config = self.config
        q, _ = (self.linear_q_proj if config.q_lora_rank is None else self.linear_q_up_proj)(q_latent)
        kv, _ = self.linear_kv_up_proj(kv_latent)
        heads = self.num_attention_heads_per_partition
        widths = Widths(config.qk_head_dim, config.qk_pos_emb_head_dim, config.v_head_dim)
        return rotate_and_join(
            q.unflatten(-1, (heads, -1)), kv.unflatten(-1, (heads, -1)), k_rotary, cos, sin, widths
        )


class Widths(NamedTuple):
    """The widths of a head's parts."""

    plain: int
    """Of queries and keys without positions."""
    rotary: int
    """Of queries and keys with rotary positions."""
    value: int


def rotate_and_join(
    q: torch.Tensor,
    kv: torch.Tensor,
    k_rotary: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    widths: Widths,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return queries and keys `[s, b, heads, plain + rotary]`, rotated, and values `[s, b, heads, value]`.

    `q [s, b, heads, plain + rotary]`, `kv [s, b, heads, plain + value]` and `k_rotary [s, b, rotary]` are not
    rotated yet. `cos` and `sin [s, 1, 1, angles]` turn neighbouring pairs of the rotary part, which come out
    as two halves; what exceeds `2 * angles` stays as it is (`megatron/core/models/common/embeddings/
    rope_utils.py`, with `mla_rotary_interleaved`). Nothing but `cos` and `sin` is kept for the gradients.
    """
    return _RotateAndJoin.apply(q, kv, k_rotary, cos, sin, widths)


class _RotateAndJoin(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: torch.Tensor,
        kv: torch.Tensor,
        k_rotary: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        widths: Widths,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        plain = widths.plain
        query, key = torch.empty_like(q), torch.empty_like(q)
        query[..., :plain] = q[..., :plain]
        _turn(q[..., plain:], cos, sin, query[..., plain:])
        key[..., :plain] = kv[..., :plain]
        of_all_heads = torch.empty_like(k_rotary)[:, :, None]
        _turn(k_rotary[:, :, None], cos, sin, of_all_heads)
        key[..., plain:] = of_all_heads
        ctx.save_for_backward(cos, sin)
        ctx.widths = widths
        return query, key, kv[..., plain:].contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        plain, _, value = ctx.widths
        of_query, of_key, of_value = grads
        of_q = torch.empty_like(of_query)
        of_q[..., :plain] = of_query[..., :plain]
        _turn_back(of_query[..., plain:], cos, sin, of_q[..., plain:])
        of_kv = of_key.new_empty(*of_key.shape[:3], plain + value)
        of_kv[..., :plain] = of_key[..., :plain]
        of_kv[..., plain:] = of_value
        of_rotary = of_key[..., plain:].sum(2, keepdim=True)
        of_k = torch.empty_like(of_rotary)
        _turn_back(of_rotary, cos, sin, of_k)
        return of_q, of_kv, of_k.squeeze(2), None, None, None


def _turn(pairs: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, halves: torch.Tensor) -> None:
    """Write `pairs` into `halves`, turned by the angles."""
    angles = cos.size(-1)
    even, odd = pairs[..., 0 : 2 * angles : 2], pairs[..., 1 : 2 * angles : 2]
    halves[..., :angles] = even * cos - odd * sin
    halves[..., angles : 2 * angles] = odd * cos + even * sin
    halves[..., 2 * angles :] = pairs[..., 2 * angles :]


def _turn_back(halves: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, pairs: torch.Tensor) -> None:
    """Write `halves` into `pairs`, turned by the opposite angles: the gradient of `_turn`."""
    angles = cos.size(-1)
    first, second = halves[..., :angles], halves[..., angles : 2 * angles]
    pairs[..., 0 : 2 * angles : 2] = first * cos + second * sin
    pairs[..., 1 : 2 * angles : 2] = second * cos - first * sin
    pairs[..., 2 * angles :] = halves[..., 2 * angles :]
