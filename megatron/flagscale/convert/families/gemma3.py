"""Gemma-3, the models for text alone: layers with a window have rotary positions of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagscale.checks.gemma import WINDOW_BASE
from flagscale.errors import short
from megatron.flagscale.convert.families.base import POSITIVE, SIZE, Setting
from megatron.flagscale.convert.families.decoder import ATTENTION, FIRST, LAST, llama_like
from megatron.flagscale.convert.families.gemma import (
    CONFIG,
    GEMMA_ARGUMENTS,
    GEMMA_KEYS,
    HARMLESS,
    NORMED_MLP,
    SETTINGS,
    SKIP,
    TASK,
    layer_types,
    same_types,
    shorter_window,
)
from megatron.flagscale.convert.families.qwen3 import NORMS
from megatron.flagscale.convert.hf_rope import Report
from megatron.flagscale.convert.hf_rope_by_type import LOCAL, usual_rope, write_rope_by_type
from megatron.flagscale.convert.model import Model

_ONE_IN = 6
"""The default of transformers: five layers with a window, then one without."""
_PATTERN, _SAVED = "sliding_window_pattern", "_sliding_window_pattern"
"""The key that transformers reads, and the one that it writes beside `layer_types`."""
_TYPES = layer_types(lambda model: model.settings[SKIP])


def _rope(model: Model) -> dict[str, Any]:
    assert model.rope is not None
    return write_rope_by_type(model.rope, model.settings[WINDOW_BASE])


def _usual(config: Mapping[str, Any], report: Report) -> Mapping[str, Any]:
    """Return the keys as in other families; reports a pattern that transformers does not read."""
    is_read = config.get("layer_types") is not None or _PATTERN in config
    if not is_read and config.get(_SAVED, _ONE_IN) != _ONE_IN:
        what = f"`{_SAVED}` is {short(config[_SAVED])}, but transformers reads only `{_PATTERN}`"
        report(f"{what}, without which it is {_ONE_IN}")
    return usual_rope(config, report)


def _regular(model: Model) -> tuple[Any, ...]:
    """Return the pattern, or the default if Megatron has windows in all layers or in a list of them."""
    pattern = model.settings[SKIP]
    return (pattern if isinstance(pattern, int) else _ONE_IN,)


GEMMA3 = llama_like(
    name="gemma3",
    architecture="Gemma3ForCausalLM",
    model_type="gemma3_text",
    rows=(*FIRST, *ATTENTION, *NORMS, *NORMED_MLP, *LAST),
    keys=GEMMA_KEYS,
    arguments={**GEMMA_ARGUMENTS, "qk_layernorm": True},
    task=TASK,
    scalings=("linear",),
    usual=_usual,
    computed={SKIP: _regular},
    settings=(
        *SETTINGS,
        Setting(_PATTERN, SKIP, kind=SIZE),
        Setting(LOCAL, WINDOW_BASE, kind=POSITIVE),
    ),
    config={**CONFIG, "attn_logit_softcapping": None},  # transformers ignores it, and vLLM does not
    written={"layer_types": _TYPES, "rope_parameters": _rope},
    checks={"layer_types": same_types(_TYPES), "sliding_window": shorter_window},
    harmless=HARMLESS,
    whole_heads=True,
    other_keys={_SAVED: _PATTERN},
    defaults={_PATTERN: _ONE_IN, "rope_theta": 1000000.0, LOCAL: 10000.0, "rope_parameters": None},
)
