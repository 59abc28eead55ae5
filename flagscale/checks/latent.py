"""Rules for multi-latent attention (MLA): keys that the engine ignores with it, or reads only with it.

Found in Megatron-core 0.19.2: `core/transformer/multi_latent_attention.py`, `core/models/gpt/gpt_model.py`,
`MLATransformerConfig`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.errors import Violation

MLA = "multi_latent_attention"

ONLY_WITH_MLA: Mapping[str, Any] = {
    "q_lora_rank": None,
    "kv_lora_rank": 32,
    "qk_head_dim": 128,
    "qk_pos_emb_head_dim": 64,
    "v_head_dim": 128,
    "cache_mla_latents": False,
    "mla_down_proj_fusion": False,
}
"""Arguments (by dest) that only MLA reads, with the engine's defaults."""

ONLY_WITH_YARN: Mapping[str, Any] = {
    "rotary_scaling_factor": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 0.0,
    "yarn_original_max_position_embeddings": None,
    "yarn_beta_fast": None,
    "yarn_beta_slow": None,
}
"""Arguments (by dest) that only yarn reads, with the engine's defaults."""

NOT_WITH_MLA: Mapping[str, str] = {
    "add_qkv_bias": "its projections have no biases",
    "attention_output_gate": "it has no gate",
    "qk_l2_norm": "use `qk_layernorm`",
    "rotary_interleaved": "it always turns neighbouring pairs",
    "use_rope_scaling": "use `rope_type: yarn`",
    "rotary_seq_len_interpolation_factor": "use `rope_type: yarn`",
    "no_rope_freq": "all of its layers have rotary positions",
    "use_mup": "it has a scale of its own for attention scores",
    "cache_mla_latents": "it is for inference, and fails in training",
}
"""Arguments (by dest) that MLA ignores, or that the engine rejects late, and why or what to use instead."""


def latent_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield what the engine would ignore, or reject after the start, in arguments by dest."""
    if values.get(MLA):
        yield from _with_mla(values)
    else:
        for name, default in ONLY_WITH_MLA.items():
            if values.get(name) not in (default, None):
                yield name, f"`{name}` has no effect without `{MLA}: true`"
        if values.get("rope_type") == "yarn":
            what = f"`rope_type: yarn` needs `{MLA}: true`; without it, use `position_embedding_type: yarn`"
            yield "rope_type", what
        if "mla_up_proj" in (values.get("recompute_modules") or ()):
            yield "recompute_modules", f"`recompute_modules: mla_up_proj` needs `{MLA}: true`"
    fast, slow = values.get("yarn_beta_fast"), values.get("yarn_beta_slow")
    fast, slow = (
        one if isinstance(one, int | float) else default for one, default in ((fast, 32), (slow, 1))
    )
    if uses_yarn(values) and not fast > slow > 0:
        name = "yarn_beta_slow" if values.get("yarn_beta_slow") is not None else "yarn_beta_fast"
        yield (
            name,
            f"`yarn_beta_fast` {fast:g} must be larger than `yarn_beta_slow` {slow:g}, and both than 0",
        )
    if not uses_yarn(values):
        for name, default in ONLY_WITH_YARN.items():
            if values.get(name) not in (default, None):
                needed = f"`rope_type: yarn`, or `position_embedding_type: yarn` without `{MLA}`"
                yield name, f"`{name}` has no effect without {needed}"
        name = "yarn_correction_range_round_to_int"
        if values.get(name) is False and not values.get(MLA):
            yield name, f"`{name}: false` has no effect without `position_embedding_type: yarn`; remove it"


def uses_yarn(values: Mapping[str, Any]) -> bool:
    """Return whether rotary positions are stretched by yarn, MLA's default."""
    if values.get(MLA):
        return values.get("rope_type") != "rope"
    return values.get("position_embedding_type") == "yarn"


def _with_mla(values: Mapping[str, Any]) -> Iterator[Violation]:
    for name, why in NOT_WITH_MLA.items():
        if values.get(name):
            yield name, f"`{name}` is not supported with `{MLA}`: {why}"
    if values.get("transformer_impl") == "local":
        what = f"`{MLA}` is not supported with `transformer_impl: local`; use `transformer_impl: torch`"
        yield "transformer_impl", what
    kind = values.get("position_embedding_type")
    if kind != "rope" and not values.get("use_rotary_position_embeddings"):
        what = f"`{MLA}` has rotary positions of its own, in addition to `position_embedding_type: {kind}`"
        yield "position_embedding_type", f"{what}; set `position_embedding_type: rope`"
    is_fused = values.get("apply_rope_fusion") and values.get("transformer_impl") == "transformer_engine"
    if is_fused and not uses_yarn(values):
        what = "fused rotary positions need `rope_type: yarn`; set `no_rope_fusion: true`"
        yield "rope_type", f"with `{MLA}` and `transformer_impl: transformer_engine`, {what}"
    if uses_yarn(values) and values.get("rotary_percent") not in (None, 1.0):
        yield "rotary_percent", f"`rotary_percent` has no effect on yarn: with `{MLA}`, set `rope_type: rope`"
    if values.get("yarn_correction_range_round_to_int") is False:
        name = "yarn_correction_range_round_to_int"
        yield name, f"`{name}: false` has no effect with `{MLA}`, which always rounds; remove it"
    width = values.get("qk_pos_emb_head_dim")
    if isinstance(width, int) and width % 2:
        yield "qk_pos_emb_head_dim", f"qk_pos_emb_head_dim {width} must be even: pairs of elements are turned"
