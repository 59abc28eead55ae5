"""The model configuration and the data of a training with pictures, as `train_llava` passes them on."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any

import torch

from flagscale.errors import Problem, UserError
from flagscale.vision.arguments import vision_of
from megatron.flagscale.vision.freezing import freeze
from megatron.flagscale.vision.reading import Reading, has_one_length, reading


def training_config(args: argparse.Namespace) -> Any:
    """Return Megatron's configuration of the model, with what a training adds to it.

    Raises:
        UserError: the arguments of the vision part are wrong, or the tokenizer has no token for pictures.
    """
    from megatron.training.argument_utils import gpt_config_from_args

    from megatron.flagscale.vision.builder import LlavaConfig
    from megatron.flagscale.vision.work import report_pictures

    config = gpt_config_from_args(args, model_config_cls=LlavaConfig)
    config.vision = vision_of(vars(args))
    config.image_id, config.video_id = token_id(args.image_token), token_id(args.video_token)
    if config.image_id is None:
        hint = "add it to the tokenizer, or name the token that stands for a picture"
        what = f"the tokenizer has no token {args.image_token!r}"
        raise UserError([Problem(what, "--image-token", hint)])

    def frozen(chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
        freeze(args, chunks)
        return chunks

    config.pre_wrap_hooks.append(frozen)
    # The engine takes it from no argument, and not from the constructor with every dispatcher of experts.
    config.transformer.variable_seq_lengths = not has_one_length(args)
    report_pictures(args, config.vision)
    return config


def token_id(token: str) -> int | None:
    """Return the id of a token in the engine's tokenizer; None if it has no such token."""
    from megatron.training import get_tokenizer

    library = get_tokenizer()._tokenizer
    try:
        (found,) = library.tokens_to_ids([token])
    except ValueError:  # of NullTokenizer, whose tokens are numbers
        return None
    # Others have an id for what they do not know.
    return found if found is not None and library.ids_to_tokens([found]) == [token] else None


Loaders = Callable[[argparse.Namespace, Reading | None], tuple[Iterator[Any] | None, Iterator[Any] | None]]
"""`(args, what this rank reads, or None) -> (training, validation)`: endless micro-batches (see batch.py), or
None on a rank that reads nothing, or if there is no such data. The validation begins again with its first
sample after each evaluation. Called on every rank, for each chunk of the model that it has."""


def external(loaders: Loaders, vp_stage: int | None) -> tuple[Any, Any, None]:
    """Return the data of a rank, which the trainer takes as it is, without samplers of its own."""
    from megatron.training import get_args

    args = get_args()
    args.dataloader_type = "external"
    return *loaders(args, reading(args, vp_stage)), None
