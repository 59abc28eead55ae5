"""Norms that the engine does not have, compared with the same computation written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron.flagscale.layers.norm import Norm
from megatron.flagscale.layers.self_attention import SelfAttention
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


@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize("zero_centered", [False, True])
def test_all_heads_of_queries_and_of_keys_share_a_norm(groups: int, zero_centered: bool) -> None:
    more = {"num_query_groups": groups, "layernorm_zero_centered_gamma": zero_centered}
    config = settings(params_dtype=torch.float64, bf16=False, **more)
    config.qk_layernorm_across_heads = True
    attention = layer_of(config).self_attention.double()
    torch.manual_seed(0)
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter)
    hidden = torch.randn(LENGTH, BATCH, HIDDEN, dtype=torch.float64, requires_grad=True)
    *normed, value = attention.get_query_key_value_tensors(hidden)
    *plain, same = SelfAttention.get_query_key_value_tensors(attention, hidden)
    assert torch.equal(value, same)
    for norm, found, heads in zip((attention.query_norm, attention.key_norm), normed, plain, strict=True):
        weight = norm.weight + 1 if zero_centered else norm.weight
        flat = heads.flatten(2)
        assert weight.shape == (flat.size(-1),)
        expected = (F.rms_norm(flat, weight.shape, eps=1e-5) * weight).view_as(heads)
        grad, leaves = torch.randn_like(heads), [hidden, norm.weight]
        ends = [
            (out, *torch.autograd.grad(out, leaves, grad, retain_graph=True)) for out in (found, expected)
        ]
        for one, other in zip(*ends, strict=True):
            assert error(one, other.detach()) <= 1e-13
