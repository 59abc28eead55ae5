"""Which parameters a training with pictures leaves as they are."""

from __future__ import annotations

import argparse

import pytest
import torch

from flagscale.checks.pictures import PARTS
from megatron.flagscale.vision.freezing import freeze

NAMES = {
    "embedding.word_embeddings.weight": "freeze_LM",
    "decoder.layers.0.mlp.linear_fc1.weight": "freeze_LM",
    "output_layer.weight": "freeze_LM",
    "pictures.tower.patch_embedding.weight": "freeze_ViT",
    "pictures.tower.decoder.layers.0.mlp.linear_fc1.weight": "freeze_ViT",
    "pictures.projector.linear_fc1.bias": "freeze_projector",
    "pictures.newline": "freeze_projector",
}


def chunk(names: dict[str, str]) -> torch.nn.Module:
    """Return a module with parameters of these names."""
    made = torch.nn.Module()
    for name in names:
        *path, last = name.split(".")
        owner = made
        for step in path:
            if not hasattr(owner, step):
                owner.add_module(step, torch.nn.Module())
            owner = getattr(owner, step)
        owner.register_parameter(last, torch.nn.Parameter(torch.zeros(1)))
    return made


@pytest.mark.parametrize("frozen", [(), *((part,) for part in PARTS), PARTS[:2]])
def test_only_the_parts_that_are_not_frozen_are_trained(frozen: tuple[str, ...]) -> None:
    made = chunk(NAMES)
    freeze(argparse.Namespace(**{part: part in frozen for part in PARTS}), [made])
    trained = {name for name, parameter in made.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, part in NAMES.items() if part not in frozen}
