"""The names that Megatron-core's layers give their tensors, turned into those of a `torch_dist` checkpoint.

`torch_dist` has one name per tensor, with numbers of the whole model. Modules name a tensor by their own
kind of layer (`local`, `torch`, TransformerEngine), and number layers and experts from zero on each rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

_RENAMED = {
    ".input_layernorm.": ".self_attention.linear_qkv.layer_norm_",
    ".pre_mlp_layernorm.": ".mlp.linear_fc1.layer_norm_",
    ".linear_q_up_proj.layer_norm_": ".q_layernorm.",
    ".linear_kv_up_proj.layer_norm_": ".kv_layernorm.",
    ".mtp_model_layer.": ".transformer_layer.",
}
"""Norms that are modules of their own, except in TransformerEngine's linear layers, and a module that has its
older name in `torch_dist`."""
_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_SEQUENTIAL = re.compile(r"\.experts\.local_experts\.(\d+)\.(linear_fc[12]\.\w+)")
_GROUPED = re.compile(r"\.experts\.(linear_fc[12]\.(?:weight|bias))(\d+)")
_JOINED = re.compile(r"(.*\.mlp\.experts\.)weight([12])")


class Place(NamedTuple):
    """A tensor by its name in the whole model, and its expert if there are several."""

    name: str
    expert: int | None = None

    def __str__(self) -> str:
        return self.name if self.expert is None else f"{self.name} of expert {self.expert}"


def place_of(name: str, layers: int, experts: int) -> Place:
    """Return the place of a rank's tensor, given how many layers and experts come before the rank's."""
    name = _LAYER.sub(lambda match: f"decoder.layers.{int(match[1]) + layers}.", name)
    for own, common in _RENAMED.items():
        name = name.replace(own, common)
    if match := _SEQUENTIAL.search(name):
        number, kind = match[1], match[2]
    elif match := _GROUPED.search(name):
        kind, number = match[1], match[2]
    else:
        return Place(name)
    return Place(f"{name[: match.start()]}.experts.experts.{kind}", int(number) + experts)


def views(chunk: Mapping[str, torch.Tensor], experts: int) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors of a rank, those of joined experts one by one.

    In older Megatron-core, `moe_grouped_gemm` without TransformerEngine joins the weights of a rank's experts
    (`megatron/core/transformer/moe/experts.py:GroupedMLP`): `weight1 [hidden, experts * ffn]` is read as
    `[experts, hidden, ffn]`, and `weight2 [experts * ffn, hidden]` as `[experts, ffn, hidden]`.
    """
    for name, tensor in chunk.items():
        if not (match := _JOINED.fullmatch(name)):
            yield name, tensor
            continue
        shape = (experts, tensor.shape[0], -1) if match[2] == "1" else (experts, -1, tensor.shape[1])
        for number, weight in enumerate(tensor.reshape(shape)):
            yield f"{match[1]}linear_fc{match[2]}.weight{number}", weight.t()
