"""Train a language model that sees pictures: `torchrun ... -m megatron.flagscale.train_llava ARGUMENTS`.

LLaVA-1.5 and LLaVA-OneVision: a GPT model whose embeddings come from a vision tower where the text has a
picture or a video. Conversations with pictures are read from Megatron-Energon folders.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from megatron.flagscale.program import run
from megatron.flagscale.vision.arguments import add_arguments
from megatron.flagscale.vision.forward import forward_step

if TYPE_CHECKING:
    import argparse


def model_config(args: argparse.Namespace) -> Any:
    """Return the configuration of the language model with its pictures."""
    from megatron.flagscale.vision.training import training_config

    return training_config(args)


def datasets(num_samples: tuple[int, int, int], vp_stage: int | None = None) -> tuple[Any, Any, Any]:
    """Return iterators over the micro-batches of the training and the validation, and None for a test."""
    from energon_flagscale import loader
    from megatron.flagscale.vision.training import external

    return external(loader.datasets, vp_stage)


datasets.is_distributed = True  # type: ignore[attr-defined]


if __name__ == "__main__":
    sys.exit(
        run(
            add_arguments=add_arguments,
            model_config=model_config,
            datasets=datasets,
            forward_step=forward_step,
        )
    )
