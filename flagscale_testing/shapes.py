"""The cases of conversion in other shapes: odd ones for long sequences, and those that vLLM serves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from flagscale_testing.conversion import Case

_ODD = {
    "vocab_size": 251,
    "hidden_size": 60,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
}
_WIDTH = 20
_ODD_KEYS = {
    "head_dim": _WIDTH,
    "sliding_window": 100,
    "num_local_experts": 5,
    "num_experts": 7,
    "n_routed_experts": 7,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 36,
    "shared_expert_intermediate_size": 52,
    "kv_lora_rank": 20,
    "q_lora_rank": 28,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6,
    "v_head_dim": 14,
}
"""Key -> its value, if the case has the key and it is not null there."""

_SERVED = {"hidden_size": 128, "num_hidden_layers": 3}
_SERVED_KEYS = {
    "head_dim": 32,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}
"""DeepSeek's published widths, and heads of 32 in all other models."""


def odd(case: Case, length: int) -> Case:
    """Return the case in an odd shape, for sequences of up to `length` tokens.

    Heads are wider than the hidden size divided by their number if the configuration has a key for it.
    """
    width = {"head_dim": _WIDTH} if _has_width(case) else {}
    return _reshaped(case, length, {**_ODD, **width}, _ODD_KEYS, case.odd)


def served(case: Case, length: int) -> Case:
    """Return the case in a shape that vLLM serves on processors, for sequences of up to `length` tokens."""
    return _reshaped(case, length, _SERVED, _SERVED_KEYS, case.served)


def _has_width(case: Case) -> bool:
    import transformers

    is_latent = "kv_lora_rank" in case.settings  # then the key is another name of `qk_rope_head_dim`
    return not is_latent and hasattr(getattr(transformers, f"{case.config}Config"), "head_dim")


def _reshaped(
    case: Case, length: int, sizes: Mapping[str, Any], keys: Mapping[str, Any], own: Mapping[str, Any]
) -> Case:
    given = {key: value for key, value in keys.items() if case.settings.get(key) is not None}
    positions = max(length, case.settings.get("max_position_embeddings", 0))
    settings = {**case.settings, **sizes, **given, "max_position_embeddings": positions, **own}
    return replace(case, settings=settings)
