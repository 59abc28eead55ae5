"""The arguments of a training of adapters, for every training program."""

from __future__ import annotations

import argparse

from flagscale.checks.lora import ALPHA, DROPOUT, LAYERS, RANK, TARGETS
from flagscale.formats import option_of


def add_lora_args(group: argparse._ArgumentGroup) -> None:
    """Add them to FlagScale's group of arguments; their rules are in `flagscale.checks.lora`."""
    group.add_argument(
        option_of(RANK),
        type=int,
        metavar="N",
        help="Train adapters (LoRA) of this rank, and nothing else, on the model in --pretrained-checkpoint. "
        "Checkpoints hold only the adapters.",
    )
    group.add_argument(
        option_of(ALPHA),
        type=float,
        metavar="X",
        help="The adapters' product is multiplied by alpha / rank. By default alpha is the rank.",
    )
    group.add_argument(
        option_of(DROPOUT), type=float, default=0.0, metavar="P", help="Dropout of the adapters' inputs."
    )
    names = dict.fromkeys(part for parts in LAYERS.values() for part in parts)
    group.add_argument(
        option_of(TARGETS),
        nargs="+",
        metavar="NAME",
        help="The projections that get adapters, by their names in Hugging Face's format: "
        f"{', '.join(names)}; linear_qkv, linear_proj, linear_fc1 or linear_fc2 stands for all that this "
        "layer joins. By default all that the model has.",
    )
