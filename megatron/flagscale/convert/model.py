"""Describe a model independently of the format, Hugging Face's or Megatron's. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Values of `--dtype`, with the names of these precisions in torch and Hugging Face."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions. `scaling` is "" (none), "linear", or "llama3" (as in Llama 3.1), by `factor`."""

    theta: float = 10000.0
    scaling: str = ""
    factor: float = 1.0


@dataclass(frozen=True)
class Model:
    """The architecture of a decoder: the name of its family, and its sizes.

    `vocab` is the true number of tokens, without padding; `ffn` is the width of one expert if there are
    experts; `rope` is None if positions are not rotary; `dtype` is torch's name of the intended precision.
    `window` is the number of tokens that each token attends to, itself included; 0 is all of the preceding.
    `settings` holds the values of the family's `Setting`s, by argument of Megatron.
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
    window: int = 0
    attention_dropout: float = 0.0
    hidden_dropout: float = 0.0
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
