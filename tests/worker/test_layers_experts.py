"""Experts as grouped products agree with plain float64 arithmetic and keep the weights of separate ones."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from megatron.core.models.backends import LocalSpecProvider
from megatron.core.transformer.moe.experts import SequentialMLP

from megatron.flagscale.layers.experts import GroupedExperts
from tests.worker.test_layers import DEVICES, LIMITS, as_leaves, config, error, inputs

GROUP = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
GROUPS = SimpleNamespace(ep=GROUP, expt_tp=GROUP, expt_dp=GROUP)


def make(kind: type[SequentialMLP], count: int, **settings: Any) -> SequentialMLP:
    usual = {"gated_linear_unit": True, "activation_func": F.silu}
    whole = config(
        num_moe_experts=count,
        moe_ffn_hidden_size=24,
        add_bias_linear=False,
        use_cpu_initialization=True,
        init_method=torch.nn.init.normal_,
        output_layer_init_method=torch.nn.init.normal_,
        **usual | settings,
    )
    builder = LocalSpecProvider().grouped_mlp_modules(False)
    return kind(count, whole, *builder.args, **builder.keywords, pg_collection=GROUPS)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("counts", [(5, 5, 5), (0, 7, 9), (16, 0, 0), (17,), (0, 0)], ids=str)
def test_grouped_experts_are_exact(device: str, dtype: torch.dtype, counts: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = make(GroupedExperts, len(counts)).to(device, dtype)
    rows, weights, grad = (
        tensor.to(dtype).double() for tensor in inputs((sum(counts), 64), (sum(counts),), (sum(counts), 64))
    )
    found = as_leaves([rows, weights], dtype, device)
    out, bias = module(found[0], torch.tensor(counts), found[1])
    assert bias is None
    out.backward(grad.to(device, dtype))

    exact = as_leaves([rows, weights], torch.float64)
    parameters = {
        name: value.detach().cpu().double().requires_grad_() for name, value in module.named_parameters()
    }
    parts = []
    for expert, (tokens, scale) in enumerate(
        zip(exact[0].split(counts), exact[1].split(counts), strict=True)
    ):
        fc1, fc2 = (parameters[f"local_experts.{expert}.linear_fc{number}.weight"] for number in (1, 2))
        gate, up = (tokens @ fc1.t()).chunk(2, -1)
        parts.append((F.silu(gate) * up * scale[:, None]) @ fc2.t())
    expected = torch.cat(parts)
    expected.backward(grad)
    pairs = [(out, expected), (found[0].grad, exact[0].grad), (found[1].grad, exact[1].grad)]
    pairs += [(value.grad, parameters[name].grad) for name, value in module.named_parameters()]
    for ours, reference in pairs:
        assert reference is not None
        assert reference.norm() == 0 or error(ours, reference.detach()) <= LIMITS[dtype]


def test_grouped_weights_have_the_same_names_as_separate_experts() -> None:
    names = [set(make(kind, 3).state_dict()) for kind in (GroupedExperts, SequentialMLP)]
    assert names[0] == names[1]
