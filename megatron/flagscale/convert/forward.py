"""Run the model of a checkpoint on tokens, as the trainer builds and loads it.

It is a process of its own (see `logits`): `... -m megatron.flagscale.convert.forward TOKENS ANSWER ARGS...`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch


def forward(tokens: torch.Tensor, pictures: Mapping[str, Any] | None, argv: list[str]) -> torch.Tensor:
    """Build the model that the worker's arguments describe, load it, and run it on tokens without dropout.

    `pictures` is `PictureSample.of_megatron` for a model with pictures.
    """
    from megatron.flagscale.bootstrap import adapt, prepare_engine

    sys.argv[1:] = prepare_engine(argv)

    from megatron.core.enums import ModelType
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.training.argument_utils import gpt_config_from_args, pretrain_cfg_container_from_args
    from megatron.training.initialize import initialize_megatron
    from megatron.training.training import setup_model_and_optimizer

    from megatron.flagscale.args import parse
    from megatron.flagscale.convert.picture_sample import media_of, picture_config

    args = parse()
    model_config = picture_config(args, pictures) if pictures else gpt_config_from_args(args)
    adapt(model_config, args)
    initialize_megatron(allow_no_cuda=True)
    (model,), _, _ = setup_model_and_optimizer(
        ModelType.encoder_or_decoder,
        cfg_container=pretrain_cfg_container_from_args(args, model_config),
        pg_collection=ProcessGroupCollection.use_mpu_process_groups(),
    )
    model.eval()
    device = next(model.parameters()).device
    tokens = tokens.to(device)
    positions = torch.arange(tokens.shape[1], device=device).expand_as(tokens)
    media = {"media": media_of(pictures, device)} if pictures else {}
    with torch.no_grad():
        logits: torch.Tensor = model(tokens, positions, None, **media)
    return logits.float().cpu()


def main(argv: list[str]) -> None:
    """Read tokens from a file and write their logits to another; `argv` is `TOKENS ANSWER ARGUMENTS...`."""
    given, answer, *arguments = argv
    torch.save(forward(**torch.load(given, weights_only=True), argv=arguments), answer)


if __name__ == "__main__":
    main(sys.argv[1:])
