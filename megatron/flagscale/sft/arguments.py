"""The arguments of instruction tuning, and the one by which pretraining reads loss masks."""

from __future__ import annotations

import argparse

from flagscale.checks.mask_files import MASKS, NO_PACKING, SEPARATE, TEXT
from flagscale.formats import option_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `megatron.flagscale.train_gpt_sft` to a parser."""
    group = parser.add_argument_group("instruction tuning")
    group.add_argument(
        option_of(NO_PACKING),
        action="store_true",
        help="One conversation per sample, filled up with padding. By default each sample is filled with "
        "whole conversations, which do not see each other.",
    )


def add_mask_args(group: argparse._ArgumentGroup) -> None:
    """Add the argument of every program that trains on `.bin/.idx` pairs."""
    group.add_argument(
        option_of(SEPARATE),
        action="store_true",
        help=f"Multiply the loss masks of data named `<x>{TEXT}` with those in `<x>{MASKS}`, if that pair "
        "exists. Documents are joined and cut as without it; for conversations as samples, see "
        "megatron.flagscale.train_gpt_sft.",
    )
