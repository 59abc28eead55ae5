"""Train some parts of a model that sees pictures, and keep the others as they are."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch

from flagscale.errors import Problem, UserError

TOWER, PROJECTOR = ("pictures.tower.",), ("pictures.projector.", "pictures.newline")
"""What the names of the parameters of a part begin with; all others belong to the language model."""
OPTIONS = ("freeze_LM", "freeze_ViT", "freeze_projector")


def option_of(name: str) -> str:
    """Return the argument (by dest) that freezes a parameter with this name in the whole model."""
    if name.startswith(TOWER):
        return "freeze_ViT"
    return "freeze_projector" if name.startswith(PROJECTOR) else "freeze_LM"


def freeze(args: argparse.Namespace, chunks: Iterable[torch.nn.Module]) -> None:
    """Exclude the parameters of frozen parts from training; a stage may have nothing left to train.

    Raises:
        UserError: all parts are frozen.
    """
    frozen = {option for option in OPTIONS if getattr(args, option)}
    if frozen == {*OPTIONS}:
        raise UserError([Problem("all parts are frozen, so there is nothing to train", "--freeze-LM")])
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            if option_of(name) in frozen:
                parameter.requires_grad = False
