"""Mistral: a Llama whose configuration may have a sliding window, which Megatron does not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megatron.flagscale.convert.families.decoder import (
    ATTENTION,
    FIRST,
    LAST,
    MLP,
    llama_like,
    refuse_windows,
)
from megatron.flagscale.convert.model import Model

_WINDOW = {"sliding_window": 4096}
"""The default of `MistralConfig`."""


def _windows(config: Mapping[str, Any], model: Model) -> Iterator[str]:
    return refuse_windows({**_WINDOW, **config}, model)


MISTRAL = llama_like(
    name="mistral",
    architecture="MistralForCausalLM",
    model_type="mistral",
    rows=(*FIRST, *ATTENTION, *MLP, *LAST),
    config={"hidden_act": "silu"},
    written={"attention_dropout": 0.0, "sliding_window": None},
    mixture="mixtral",
    refuse=_windows,
)
