"""Initial weights that depend on the seed alone, not on how the model is spread over ranks.

Megatron seeds each rank's generator by its place in the layout, so every layout starts from different weights
and their losses cannot be compared. Here each parameter is drawn whole, by Megatron's own rule for it, from a
generator that is seeded with the parameter's name in the whole model, and each rank keeps its part.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Callable
from typing import Any

import torch
from megatron.core import mpu
from megatron.training import get_args

from megatron.flagscale.checkpoint.resume import weights_will_be_loaded

_EMBEDDING = "embedding.word_embeddings.weight"
_OUTPUT = "output_layer.weight"
_RULES = ("init_method", "output_layer_init_method", "embedding_init_method")

Rule = Callable[[torch.Tensor], Any]


def draw_by_name(model_config: Any, seed: int) -> None:
    """Make a model that is built from `model_config` start from the same weights in every layout.

    Megatron then only records the rule of each parameter; a hook draws all of them once their names are
    known, unless a checkpoint will replace them. Weights without a rule (norms, biases) are the same in every
    layout anyway.
    """
    transformer = model_config.transformer
    for name in _RULES:
        setattr(transformer, name, functools.partial(_note, getattr(transformer, name)))
    model_config.pre_wrap_hooks.append(functools.partial(_draw_all, model_config, seed))


def _note(rule: Rule, parameter: torch.Tensor) -> None:
    parameter.drawn_by = rule


def _draw_all(model_config: Any, seed: int, chunks: list[torch.nn.Module]) -> list[torch.nn.Module]:
    real_rows = model_config.vocab_size if model_config.should_pad_vocab else None
    is_drawn = not weights_will_be_loaded(get_args())
    for chunk in chunks:
        for prefix, module in chunk.named_modules():
            for local_name, parameter in module.named_parameters(prefix, recurse=False):
                rule = vars(parameter).pop("drawn_by", None)
                if rule is None or not is_drawn:
                    continue
                name = global_name(local_name, chunk)
                if name == _OUTPUT and model_config.share_embeddings_and_output_weights:
                    name = _EMBEDDING
                    rule = model_config.transformer.embedding_init_method.args[0]
                rows = real_rows if name in (_EMBEDDING, _OUTPUT) else None
                draw(parameter, rule, f"{seed}/{name}", getattr(module, "tp_group", None), rows)
    return chunks


def global_name(name: str, chunk: torch.nn.Module) -> str:
    """Return a parameter's name in the whole model: layers and experts have their global index."""

    def layer(found: re.Match[str]) -> str:
        return f"{found[1]}{chunk.get_submodule(found[0]).layer_number - 1}"

    def expert(found: re.Match[str]) -> str:
        local = len(chunk.get_submodule(found.string[: found.end(1) - 1]))
        return f"{found[1]}{mpu.get_expert_model_parallel_rank() * local + int(found[2])}"

    name = re.sub(r"(\.local_experts\.)(\d+)", expert, name)
    return re.sub(r"^(decoder\.layers\.)\d+", layer, name)


def draw(parameter: torch.Tensor, rule: Rule, key: str, group: Any, real_rows: int | None) -> None:
    """Fill a parameter with its part of the whole that `rule` draws; `real_rows` excludes padding rows."""
    is_cut = getattr(parameter, "tensor_model_parallel", False)
    size, rank = (group.size(), group.rank()) if is_cut else (1, 0)
    dim, stride = (parameter.partition_dim, parameter.partition_stride) if is_cut else (0, 1)
    shape = list(parameter.shape)
    shape[dim] *= size
    # Drawn in single precision, so that weights are the same whatever the precision of the parameter.
    whole = torch.empty(shape, device=parameter.device)
    rows = shape[0] if real_rows is None else min(real_rows, shape[0])
    on_chip = whole.device.index is not None
    with torch.random.fork_rng(devices=[whole.device] if on_chip else []):
        # Padding rows of a vocabulary are drawn last and separately: their number does not affect the others.
        for part, part_key in ((whole[:rows], key), (whole[rows:], f"{key}/padding")):
            if part.numel():
                torch.manual_seed(zlib.crc32(part_key.encode()))
                rule(part)
    own = whole.unflatten(dim, (stride, size, -1)).select(dim + 1, rank).flatten(dim, dim + 1)
    with torch.no_grad():
        parameter.copy_(own)
