"""Train some parts of a model that sees pictures, and keep the others as they are."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

import torch

from flagscale.checks.pictures import PARTS

_OF_TOWER, _OF_PROJECTOR = ("pictures.tower.",), ("pictures.projector.", "pictures.newline")
"""What the names of the parameters of a part begin with; all others belong to the language model."""
_LANGUAGE_MODEL, _TOWER, _PROJECTOR = PARTS


def _option_of(name: str) -> str:
    """Return the argument (by dest) that freezes a parameter with this name in the whole model."""
    if name.startswith(_OF_TOWER):
        return _TOWER
    return _PROJECTOR if name.startswith(_OF_PROJECTOR) else _LANGUAGE_MODEL


def freeze(args: argparse.Namespace, chunks: Iterable[torch.nn.Module]) -> None:
    """Exclude the parameters of frozen parts from training; a stage may have nothing left to train."""
    frozen = {option for option in PARTS if getattr(args, option)}
    for chunk in chunks:
        for name, parameter in chunk.named_parameters():
            if _option_of(name) in frozen:
                parameter.requires_grad = False
