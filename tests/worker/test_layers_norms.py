"""Norms of a layer's results, compared with the same layer written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron.flagscale.layers.norm import Norm
from tests.worker.test_layers import error
from tests.worker.test_layers_kept import BATCH, HIDDEN, LENGTH, layer_of, patched, settings, two_ranks

__all__ = ["patched", "two_ranks"]  # fixtures of every test here


def written_out(layer: torch.nn.Module, position: str, hidden: torch.Tensor) -> torch.Tensor:
    """Return what a layer without dropout computes: two results, each added to what it was computed from."""

    def normed(norm: torch.nn.Module, tensor: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(tensor, (HIDDEN,), norm.weight, 1e-5)

    for before, part, after in (
        ("input_layernorm", layer.self_attention, "post_attention_norm"),
        ("pre_mlp_layernorm", layer.mlp, "post_mlp_norm"),
    ):
        read = hidden if position == "post" else normed(layer.get_submodule(before), hidden)
        masks = {"attention_mask": None} if part is layer.self_attention else {}
        result, bias = part(read, **masks)
        result = result if bias is None else result + bias
        hidden = hidden + (result if position == "pre" else normed(layer.get_submodule(after), result))
    return hidden


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("position", ["pre", "post", "both"])
def test_a_layer_normalizes_where_it_should(position: str, biases: bool) -> None:
    config = settings(params_dtype=torch.float64, bf16=False, add_bias_linear=biases)
    config.norm_position = position
    layer = layer_of(config).double()
    torch.manual_seed(0)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    count = sum(isinstance(module, Norm) for module in layer.modules())
    assert count == {"pre": 2, "post": 2, "both": 4}[position]
    leaves = [torch.randn(LENGTH, BATCH, HIDDEN, dtype=torch.float64, requires_grad=True)]
    leaves += layer.parameters()
    grad = torch.randn(LENGTH, BATCH, HIDDEN, dtype=torch.float64)
    ends = []
    for out in (layer(leaves[0], attention_mask=None)[0], written_out(layer, position, leaves[0])):
        ends.append((out, *torch.autograd.grad(out, leaves, grad)))
    for found, expected in zip(*ends, strict=True):
        assert error(found, expected.detach()) <= 1e-13
