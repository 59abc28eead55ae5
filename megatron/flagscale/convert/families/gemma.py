"""Tables that Gemma-2 and Gemma-3 share: norms around attention and MLP, windows in some layers, gated GELU.

Megatron-core has none of these norms, activations and scales; they are FlagScale's layers (docs/layers.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flagscale.checks.gemma import EMBEDDING, GATE, LOGIT_CAP, SCALAR, TANH_GELU
from megatron.flagscale.convert.families.base import SIZE, Kind, Setting
from megatron.flagscale.convert.families.decoder import ARGUMENTS, KEYS, layer
from megatron.flagscale.convert.families.joins import GATED
from megatron.flagscale.convert.json_values import is_positive
from megatron.flagscale.convert.model import Model

SKIP = "window_attn_skip_freq"
"""Megatron's argument: one layer in so many has no window, the last of them."""
CAP = Kind("null or a positive number", lambda value: value is None or is_positive(value))

NORMED_MLP = (
    layer("post_attention_norm.weight", "post_attention_layernorm.weight", "hidden"),
    layer("mlp.linear_fc1.layer_norm_weight", "pre_feedforward_layernorm.weight", "hidden"),
    layer("mlp.linear_fc1.weight", "mlp.gate_proj.weight mlp.up_proj.weight", "gate+up hidden", GATED),
    layer("mlp.linear_fc2.weight", "mlp.down_proj.weight", "hidden ffn"),
    layer("post_mlp_norm.weight", "post_feedforward_layernorm.weight", "hidden"),
)
GEMMA_KEYS = {**KEYS, "window": "sliding_window"}
GEMMA_ARGUMENTS = {
    **ARGUMENTS,
    "norm_position": "both",
    "layernorm_zero_centered_gamma": True,
    EMBEDDING: True,
    GATE: TANH_GELU,
}
TASK = {"transformer_impl": "torch"}
SETTINGS = (
    Setting(SCALAR, SCALAR, kind=SIZE),
    Setting(LOGIT_CAP, LOGIT_CAP, kind=CAP),
)
HARMLESS = ("cache_implementation",)
"""How keys and values are stored while text is generated."""
CONFIG = {"hidden_activation": "gelu_pytorch_tanh", "attention_bias": False}


def shorter_window(value: Any, model: Model) -> str:
    """Return "" if a window is shorter than the longest sequence: no layer has one otherwise."""
    return "" if model.window else f"only a number less than {model.positions}, the positions, is supported"


def layer_types(freq: Callable[[Model], int]) -> Callable[[Model], list[str]]:
    """Return a function from a model to its `layer_types`; `freq` returns the value of `SKIP`."""

    def types(model: Model) -> list[str]:
        one_in = freq(model)
        return [
            "sliding_attention" if number % one_in else "full_attention"
            for number in range(1, model.layers + 1)
        ]

    return types


def same_types(types: Callable[[Model], list[str]]) -> Callable[[Any, Model], str]:
    """Return a check of `layer_types`: null, or what `types` returns."""

    def check(value: Any, model: Model) -> str:
        if value is None or value == types(model):
            return ""
        return f"only null or {types(model)} is supported"

    return check


def tanh_gelu(value: Any, model: Model) -> str:
    """Return "" if `hidden_act`, which transformers ignores, does not contradict `hidden_activation`."""
    known = CONFIG["hidden_activation"]
    return "" if value in (None, known) else f"only {known!r} is supported, like `hidden_activation`"
