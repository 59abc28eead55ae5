"""The shape of a model, as far as its memory and its time depend on it."""

from __future__ import annotations

from flagscale.frozen import dataclass


@dataclass(frozen=True)
class ModelShape:
    """A decoder of dense and expert layers. Sizes are those of the whole model, in elements."""

    hidden: int
    heads: int
    groups: int
    """Groups of keys and values; `heads` if each head has its own."""
    head_dim: int
    """Elements per head (`kv_channels`); latent attention has the sizes below instead."""
    ffn: int
    vocabulary: int
    """Rows of the embedding before padding."""
    experts_in: tuple[bool, ...]
    """For each layer, in order: whether its MLP has experts."""
    attention: str = "mha"
    """mha, gqa or mla."""
    q_lora: int = 0
    """0: queries are projected at once."""
    kv_lora: int = 0
    qk_nope_dim: int = 0
    """Elements of a query's and a key's head without positions (`qk_head_dim`)."""
    rope_dim: int = 0
    v_dim: int = 0
    experts: int = 0
    topk: int = 0
    expert_ffn: int = 0
    shared_ffn: int = 0
    """Width of the shared expert; 0: none."""
    prediction_heads: int = 0
    gated: bool = False
    """SwiGLU and its like: two projections up."""
    norm_bias: bool = False
    """LayerNorm rather than RMSNorm."""
    linear_bias: bool = False
    qkv_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    """Embedding and output share their weights."""
    learned_positions: int = 0
    """Rows of an embedding of positions; 0: rotary positions or none."""
    dropout: bool = False

    @property
    def layers(self) -> int:
        return len(self.experts_in)
