"""What a model is, apart from how Hugging Face or Megatron write it down. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Precisions that `--dtype` takes, as torch and Hugging Face name them."""


@dataclass(frozen=True)
class Rope:
    """Rotary positions. `scaling` is "" (none), "linear", or "llama3" (that of Llama 3.1, by `factor`)."""

    theta: float = 10000.0
    scaling: str = ""
    factor: float = 1.0


@dataclass(frozen=True)
class Model:
    """The architecture of a decoder: a family of `families.py`, and its sizes.

    `vocab` is the true number of tokens, without rows that pad; `ffn` the width of one expert where there are
    experts; `dtype` the precision it is meant for, as torch names it.
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
    rope: Rope
    tied: bool
    dtype: str
    experts: int = 0
    topk: int = 0

    def sizes(self) -> dict[str, int]:
        """The extents that the shapes of `families.py` name."""
        return {
            "hidden": self.hidden,
            "ffn": self.ffn,
            "gate+up": 2 * self.ffn,
            "head": self.head_dim,
            "query": self.heads * self.head_dim,
            "key": self.groups * self.head_dim,
            "qkv": (self.heads + 2 * self.groups) * self.head_dim,
            "vocab": self.vocab,
            "experts": self.experts,
        }
