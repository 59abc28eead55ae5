"""Put adapters on a model before it is trained: load the base, freeze it, add and draw the adapters."""

from __future__ import annotations

import argparse
import functools
import math
from typing import Any

import torch

from flagscale.checks.lora import DROPOUT, RANK, projections, scale
from megatron.flagscale.checkpoint.resume import prepared
from megatron.flagscale.initialization import draw, global_name
from megatron.flagscale.lora.checkpoint import adapter_state, load_base
from megatron.flagscale.lora.layer import Adapters, add_adapters
from megatron.flagscale.lora.targets import linear_layers


def attach(args: argparse.Namespace, chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
    """Make a rank's chunks of a model ones whose adapters are trained and saved, and nothing else.

    The base is loaded from `pretrained_checkpoint`.

    Raises:
        UserError: on all ranks, if the base, or the adapters in `load`, cannot be used.
    """
    base = prepared(args).base
    assert base is not None, "adapters without a base"
    load_base(base, chunks, args.dist_ckpt_strictness)
    for chunk in chunks:
        add_to(chunk, args)
        # What is saved and loaded from now on.
        chunk.sharded_state_dict = functools.partial(adapter_state, chunk)
    return chunks


def add_to(chunk: torch.nn.Module, args: argparse.Namespace) -> None:
    """Freeze a chunk and add adapters to it: A drawn by name in the whole model, B zero.

    The bias with which a router balances its experts is a buffer, and stays as it is too. In a chunk that
    begins with the embedding, its output requires a gradient: without one, recomputed layers would be
    recomputed without gradients.
    """
    chunk.requires_grad_(False)
    for module in chunk.modules():
        if hasattr(module, "frozen_expert_bias"):
            module.frozen_expert_bias = True
    values = vars(args)
    for joined in linear_layers(chunk, projections(values)):
        made = add_adapters(joined, values[RANK], scale(values), values[DROPOUT])
        _draw(made, joined.name, chunk, args.seed)
    embedding = getattr(chunk, "embedding", None)
    if embedding is not None:
        embedding.register_forward_hook(_with_gradient)


def _draw(adapters: Adapters, name: str, chunk: torch.nn.Module, seed: int) -> None:
    """Draw the A of a layer's adapters as PEFT does (0.21.2, `tuners/lora/layer.py`)."""
    rule = functools.partial(torch.nn.init.kaiming_uniform_, a=math.sqrt(5))
    for projection, adapter in adapters.items():
        key = global_name(f"{name}.adapters.{projection}.a.weight", chunk)
        draw(adapter.a.weight, rule, f"{seed}/{key}", adapters.tp_group, None)


def _with_gradient(embedding: torch.nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    return output.requires_grad_() if torch.is_grad_enabled() else output
