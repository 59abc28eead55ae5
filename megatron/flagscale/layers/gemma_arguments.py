"""Arguments of the layers of Gemma-2 and Gemma-3, and what they set in the engine's configuration."""

from __future__ import annotations

import argparse
import functools
from typing import Any

from flagscale.checks.gemma import (
    ATTENTION_CAP,
    EMBEDDING,
    GATE,
    LOGIT_CAP,
    SCALAR,
    TANH_GELU,
    WINDOW_BASE,
)
from flagscale.formats import option_of


def add_gemma_args(group: argparse._ArgumentGroup) -> None:
    """Add them to FlagScale's group of arguments; their rules are in `flagscale.checks.gemma`."""
    group.add_argument(
        option_of(EMBEDDING),
        action="store_true",
        help="Multiply embeddings by the square root of --hidden-size, rounded to the model's precision. "
        "This and the following arguments, up to --window-rotary-base, need --transformer-impl torch.",
    )
    group.add_argument(
        option_of(SCALAR),
        type=int,
        metavar="N",
        help="Divide attention scores by the square root of N. By default N is the width of a head.",
    )
    group.add_argument(
        option_of(GATE),
        choices=[TANH_GELU],
        help="With --swiglu: the gate's activation is GELU in its tanh approximation instead of SiLU.",
    )
    group.add_argument(
        option_of(ATTENTION_CAP),
        type=float,
        metavar="X",
        help="Replace each attention score s by X * tanh(s / X).",
    )
    group.add_argument(
        option_of(LOGIT_CAP), type=float, metavar="X", help="Replace each output logit s by X * tanh(s / X)."
    )
    group.add_argument(
        option_of(WINDOW_BASE),
        type=float,
        metavar="X",
        help="The base of rotary positions in layers with a window (--window-size, --window-attn-skip-freq). "
        "The other layers have --rotary-base, and the scaling of positions if there is one.",
    )


def set_gemma_layers(model_config: Any, args: Any) -> None:
    """Set the arguments in the configuration of a model, once the engine has made it."""
    import torch

    from megatron.flagscale.layers.activation import gelu_tanh
    from megatron.flagscale.layers.soft_cap import cap_logits

    transformer = model_config.transformer
    if getattr(args, EMBEDDING):
        # Without --use-mup, the engine's optimizer and initial weights stay as they are.
        root = torch.tensor(transformer.hidden_size**0.5, dtype=transformer.params_dtype)
        transformer.use_mup, transformer.mup_embedding_mult = True, root.item()
    if (scalar := getattr(args, SCALAR)) is not None:
        transformer.softmax_scale = scalar**-0.5
    if getattr(args, GATE) == TANH_GELU:
        transformer.activation_func, transformer.bias_activation_fusion = gelu_tanh, False
    for name in (ATTENTION_CAP, WINDOW_BASE):
        setattr(transformer, name, getattr(args, name))
    if (cap := getattr(args, LOGIT_CAP)) is not None:
        model_config.pre_wrap_hooks.append(functools.partial(cap_logits, cap))
