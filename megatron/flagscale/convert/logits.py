"""Compare the logits of both sides of a conversion; the trainer's own model computes those of a checkpoint.

It runs in a separate process (`megatron.flagscale.convert.forward`), because a process can hold only one of
Megatron's models.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flagscale.errors import Problem, UserError
from flagscale.formats import option_of
from megatron.flagscale.convert.families.llava import class_of
from megatron.flagscale.convert.megatron_args import task_arguments
from megatron.flagscale.convert.model import Model
from megatron.flagscale.convert.picture_sample import PictureSample, sample_of

TOLERANCE = 1e-4
_LENGTH = 64
_FORWARD = "megatron.flagscale.convert.forward"
_LEFT_OUT = ("bf16", "fp16", "mtp_num_layers")
"""Arguments of a training without which its model computes these logits: it runs in fp32, and layers for
multi-token prediction take no part."""


def verify_logits(huggingface: Path, checkpoint: Path, model: Model, hint: str = "") -> float:
    """Return the largest difference between logits on random tokens, in fp32, relative to the largest logit.

    A model with pictures is given a random one among the tokens.

    `checkpoint` is the folder of an iteration or of a release; `hint` is what may have made them differ.

    Raises:
        UserError: the logits differ by more than `TOLERANCE`.
    """
    import transformers

    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, model.vocab, (2, min(_LENGTH, model.positions)), generator=generator)
    # A folder's own code never runs: the class is one of transformers.
    kind = getattr(transformers, class_of(model))
    # Keys of the folder may choose kernels that are not installed here, or another form of the outputs.
    attention = "sdpa" if kind._supports_sdpa else "eager"
    fixed = {"attn_implementation": attention, "output_attentions": False, "return_dict": True}
    opened = kind.from_pretrained(huggingface, dtype=torch.float32, local_files_only=True, **fixed)
    sample = sample_of(model, tokens, opened.config.image_token_index) if model.vision else None
    with torch.no_grad():
        expected = opened(**sample.of_transformers).logits if sample else opened(tokens).logits
    del opened
    given = sample.tokens if sample else tokens
    # Those of the vision part are not arguments: the rules of a training with pictures do not apply here.
    arguments = task_arguments(replace(model, vision=None))
    found = megatron_logits(checkpoint, arguments, given, sample)[..., : model.vocab]
    difference: float = ((found - expected).abs().max() / expected.abs().max()).item()
    if not difference <= TOLERANCE:
        what = f"Megatron's logits differ from those of transformers by {difference:.1e} relative to the "
        what += f"largest logit, more than {TOLERANCE:.0e}; nothing was written"
        raise UserError([Problem(what, hint=hint)])
    return difference


def megatron_logits(
    checkpoint: Path,
    arguments: Mapping[str, Any],
    tokens: torch.Tensor,
    sample: PictureSample | None = None,
) -> torch.Tensor:
    """Return the logits `[batch, length, vocabulary]` of `tokens [batch, length]`, computed in fp32.

    The `tokens` of a `sample` have a picture among them.

    `checkpoint` is the folder of an iteration or of a release. `arguments` are those that
    `megatron_args.task_arguments` returns.

    Raises:
        RuntimeError: the model could not be built or loaded; includes the output of the process.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, answer = Path(folder, "tokens.pt"), Path(folder, "logits.pt")
        torch.save({"tokens": tokens, "pictures": sample.of_megatron if sample else None}, given)
        argv = ["--load", str(checkpoint.resolve().parent), *_argv(arguments, tokens)]
        if checkpoint.name.startswith("iter_"):
            argv += ["--ckpt-step", str(int(checkpoint.name.removeprefix("iter_"))), "--finetune"]
        command = [sys.executable, "-m", _FORWARD, str(given), str(answer), *argv]
        done = subprocess.run(command, capture_output=True, text=True, env=_environment())
        if not answer.exists():
            raise RuntimeError(f"Megatron's model failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
        logits: torch.Tensor = torch.load(answer, weights_only=True)
        return logits


def _argv(arguments: Mapping[str, Any], tokens: torch.Tensor) -> list[str]:
    batch, length = tokens.shape
    data = {"mock_data": True, "tokenizer_type": "NullTokenizer", "tokenizer_model": None}
    steps = {"seq_length": length, "micro_batch_size": batch, "train_iters": 1, "skip_train": True}
    argv: list[str] = []
    for name, value in {**arguments, **data, **steps}.items():
        if value is not None and name not in _LEFT_OUT:
            option = option_of(name)
            argv += [option] if value is True else [option, str(value)]
    return argv


def _environment() -> dict[str, str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
    return {**os.environ, **where, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
