"""Describe a model independently of the format, Hugging Face's or Megatron's. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flagscale.vision.tiling import Vision

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Values of `--dtype`, with the names of these precisions in torch and Hugging Face."""


@dataclass(frozen=True)
class Yarn:
    """The parameters of YaRN beside its factor, with the defaults that they have in all libraries.

    Frequencies between `beta_slow` and `beta_fast` turns in `original` positions are interpolated. Cosines
    and sines are multiplied by `scale(mscale) / scale(mscale_all_dim)`, and the attention's logits by the
    square of `scale(mscale_all_dim)`, where `scale(m)` is `0.1 * m * log(factor) + 1`. `truncate` rounds the
    ends of the interpolated range to whole dimensions.
    """

    original: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    truncate: bool = True


@dataclass(frozen=True)
class Rope:
    """Rotary positions. `scaling` is "", "linear", "llama3" (as in Llama 3.1), or "yarn", by `factor`."""

    theta: float = 10000.0
    scaling: str = ""
    factor: float = 1.0
    yarn: Yarn | None = None


@dataclass(frozen=True)
class Model:
    """The architecture of a decoder: the name of its family, and its sizes.

    `vocab` is the true number of tokens, without padding; `ffn` is the width of one expert if there are
    experts; `rope` is None if positions are not rotary; `dtype` is torch's name of the intended precision.
    `window` is the number of tokens that each token attends to, itself included; 0 is all of the preceding.
    The first `dense` layers have an MLP of width `dense_ffn` in place of experts, and every token also passes
    through `shared` experts. `mtp` is the number of further layers, for multi-token prediction.
    `settings` holds the values of the family's `Setting`s, by argument of Megatron. `vision` describes what a
    model with pictures has besides; its family is that of the language model.
    """

    family: str
    layers: int
    hidden: int
    ffn: int
    heads: int
    groups: int
    head_dim: int
    vocab: int
    positions: int
    norm_eps: float
    rope: Rope | None
    tied: bool
    dtype: str
    experts: int = 0
    topk: int = 0
    shared: int = 0
    dense: int = 0
    dense_ffn: int = 0
    mtp: int = 0
    window: int = 0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    vision: Vision | None = None
