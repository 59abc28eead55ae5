"""Do the two sides of a conversion compute the same? Their logits on random tokens, in fp32, compared."""

from __future__ import annotations

from pathlib import Path

import torch

from flagscale.errors import UserError
from megatron.flagscale.convert.logits import megatron_logits
from megatron.flagscale.convert.megatron_args import task_arguments
from megatron.flagscale.convert.model import Model

TOLERANCE = 1e-4
_LENGTH = 64


def verify_logits(huggingface: Path, checkpoint: Path, model: Model) -> float:
    """Return the greatest difference of the logits, of which the greatest is taken as 1.

    `checkpoint` is the folder of an iteration, or of a release.

    Raises:
        UserError: they differ by more than `TOLERANCE`.
    """
    from transformers import AutoModelForCausalLM

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.vocab, (2, min(_LENGTH, model.positions)), generator=generator)
    opened = AutoModelForCausalLM.from_pretrained(huggingface, dtype=torch.float32, local_files_only=True)
    with torch.no_grad():
        expected = opened(tokens).logits
    del opened
    found = megatron_logits(checkpoint, task_arguments(model), tokens)[..., : model.vocab]
    difference: float = ((found - expected).abs().max() / expected.abs().max()).item()
    if not difference <= TOLERANCE:
        raise UserError(
            f"Megatron's logits differ from those of transformers by {difference:.1e} of the greatest, "
            f"more than {TOLERANCE:.0e}: nothing was written"
        )
    return difference
