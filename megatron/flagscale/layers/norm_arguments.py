"""The arguments of norms that only the `torch` layers have (`megatron/flagscale/layers`)."""

from __future__ import annotations

import argparse

from flagscale.checks.norms import ACROSS_HEADS, POSITION, POSITIONS, PRE
from flagscale.formats import option_of


def add_norm_args(group: argparse._ArgumentGroup) -> None:
    """Add the arguments of these norms."""
    group.add_argument(
        option_of(POSITION),
        choices=POSITIONS,
        default=PRE,
        help="Where a layer has norms, with --transformer-impl torch. pre: before attention and MLP, as in "
        "Megatron; post: after them, before their results are added to the layer's input (OLMo-2); both: "
        "before and after (Gemma-2, Gemma-3).",
    )
    group.add_argument(
        option_of(ACROSS_HEADS),
        action="store_true",
        help="Normalize queries and keys over all heads together (OLMo-2), with --transformer-impl torch; "
        "--qk-layernorm normalizes each head by itself.",
    )
