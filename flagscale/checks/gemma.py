"""Rules for the arguments of FlagScale that Gemma-2 and Gemma-3 need, which Megatron's own layers lack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.checks.latent import MLA
from flagscale.checks.own_layers import own_layer_violations
from flagscale.errors import Violation

EMBEDDING, SCALAR, GATE = "scale_embedding", "query_pre_attn_scalar", "glu_activation"
ATTENTION_CAP, LOGIT_CAP = "attn_logit_softcapping", "final_logit_softcapping"
WINDOW_BASE = "window_rotary_base"
SETTINGS = (EMBEDDING, SCALAR, GATE, ATTENTION_CAP, LOGIT_CAP, WINDOW_BASE)
"""The arguments (by dest)."""
TANH_GELU = "gelu_tanh"
"""The only value of `glu_activation`."""


def gemma_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the arguments (by dest) that would have no effect, or that cannot be combined with others."""
    given = [name for name in SETTINGS if values.get(name) is not None and values[name] is not False]
    for name in given:
        if unfit := [*own_layer_violations(values, name, name)]:
            yield from unfit
        elif isinstance(value := values[name], int | float) and value <= 0:
            yield name, f"`{name}` must be positive, not {value}"
        else:
            yield from _conflicts(name, values)


def _conflicts(name: str, values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield why a given argument cannot be used with the others."""
    if name in (SCALAR, ATTENTION_CAP, WINDOW_BASE) and values.get(MLA):
        yield name, f"`{name}` is not supported with `{MLA}`; remove one"
    if name in (EMBEDDING, SCALAR) and values.get("use_mup"):
        yield name, f"`{name}` cannot be combined with `use_mup`, which has scales of its own; remove one"
    if name == LOGIT_CAP and values.get("mtp_num_layers"):
        yield name, f"`{name}` is not supported with `mtp_num_layers`; remove one"
    if name == ATTENTION_CAP and (dropout := values.get("attention_dropout")):
        yield name, f"`{name}` needs `attention_dropout: 0`, not {dropout}"
    if name == GATE and not values.get("swiglu"):
        yield name, f"`{name}` changes the activation of `swiglu`: add `swiglu: true`"
    if name == WINDOW_BASE and not values.get("window_size"):
        yield name, f"`{name}` has no effect without `window_size`; remove it, or add the window"
    if name == WINDOW_BASE and (kind := values.get("position_embedding_type")) != "rope":
        yield name, f"`{name}` needs `position_embedding_type: rope`, not {kind}"
    if name == WINDOW_BASE and (part := values.get("rotary_percent", 1.0)) != 1.0:
        yield name, f"`{name}` needs `rotary_percent: 1.0`, not {part}"
