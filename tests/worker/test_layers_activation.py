"""Activations that keep their input only, compared with plain float64 arithmetic and with Megatron's MLP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from megatron.core.activations import quick_gelu, squared_relu
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron.flagscale.layers.activation import GatedActivation, Linear, activated_product
from tests.worker.test_layers import DEVICES, LIMITS, as_leaves, config, error, inputs

pytestmark = pytest.mark.usefixtures("as_it_stands")
GATED: dict[str, dict[str, Any]] = {
    "SwiGLU": {"activation_func": F.silu},
    "SwiGLU, compiled if torch can": {"activation_func": F.silu, "bias_activation_fusion": True},
    "GEGLU": {"activation_func": F.gelu},
    "quick GEGLU": {"activation_func": quick_gelu},
    "SwiGLU, clamped": {"activation_func": F.silu, "activation_func_clamp_value": 0.7},
    "quick GEGLU, clamped, with an offset": {
        "activation_func": quick_gelu,
        "activation_func_clamp_value": 0.7,
        "glu_linear_offset": 1.0,
    },
}
PLAIN = {"GELU": {"activation_func": F.gelu}, "squared ReLU": {"activation_func": squared_relu}}


def plain(kind: dict[str, Any], rows: torch.Tensor, gated: bool) -> torch.Tensor:
    """Return the activation as its papers write it."""
    functions = {
        F.silu: lambda x: x / (1 + torch.exp(-x)),
        F.gelu: lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2,
        quick_gelu: lambda x: x / (1 + torch.exp(-1.702 * x)),
        squared_relu: lambda x: x.clamp(min=0) ** 2,
    }
    function, limit = functions[kind["activation_func"]], kind.get("activation_func_clamp_value", torch.inf)
    if not gated:
        return function(rows)
    gate, linear = rows.chunk(2, -1)
    return function(gate.clamp(max=limit)) * (
        linear.clamp(-limit, limit) + kind.get("glu_linear_offset", 0.0)
    )


@pytest.fixture
def as_it_stands() -> Iterator[None]:
    """Compile nothing."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, *LIMITS], ids=str)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", [*GATED, *PLAIN])
def test_activations_are_exact(device: str, dtype: torch.dtype, weighted: bool, name: str) -> None:
    kind = {**GATED, **PLAIN}[name]
    whole = config(**kind, gated_linear_unit=name in GATED)
    width = 24 if name in GATED else 48
    shapes = ((5, 3, 48), (5, 3), (7, width), (5, 3, 7))
    rows, weights, factor, grad = (tensor.to(dtype).double() for tensor in inputs(*shapes))
    (found,) = as_leaves([rows], dtype, device)
    # The router computes the weights in a higher precision than bf16.
    (found_weights,) = as_leaves([weights], torch.promote_types(dtype, torch.float32), device)
    (matrix,) = as_leaves([factor], dtype, device)
    product = activated_product(whole, found, found_weights if weighted else None, Linear(), matrix)
    assert product.dtype == dtype
    product.backward(grad.to(device, dtype))

    exact, exact_weights, exact_matrix = as_leaves([rows, weights, factor], torch.float64)
    expected = plain(kind, exact, name in GATED)
    if weighted:
        expected = expected * exact_weights[..., None]
    expected = expected @ exact_matrix.t()
    expected.backward(grad)
    limit = LIMITS.get(dtype, 1e-14)
    assert error(product, expected.detach()) <= limit
    assert error(found.grad, exact.grad) <= limit
    assert error(matrix.grad, exact_matrix.grad) <= limit
    if weighted:
        assert found_weights.grad.dtype == found_weights.dtype
        assert error(found_weights.grad, exact_weights.grad) <= limit


@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_agrees_with_differences(weighted: bool) -> None:
    whole = TransformerConfig(num_layers=1, hidden_size=16, num_attention_heads=4, gated_linear_unit=True)
    whole.activation_func = F.silu
    rows, scales, matrix = as_leaves(inputs((4, 6), (4,), (5, 3)), torch.float64)

    def product(rows: torch.Tensor, matrix: torch.Tensor, scales: torch.Tensor | None = None) -> torch.Tensor:
        return activated_product(whole, rows, scales, Linear(), matrix)

    assert torch.autograd.gradcheck(product, (rows, matrix, *([scales] if weighted else [])))


class LinearModule(torch.nn.Module):
    """A linear layer of Megatron's form, without process groups: it returns its bias."""

    def __init__(self, size: int, out: int, *, bias: bool, **_: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(out, size))
        self.bias = torch.nn.Parameter(torch.empty(out)) if bias else None

    def forward(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        return rows @ self.weight.t(), self.bias


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", GATED)
def test_an_mlp_computes_the_same_as_with_megatrons_own_operations(
    bias: bool, weighted: bool, name: str
) -> None:
    """Also with biases and, as in separate experts, with weights of the tokens."""
    ends = []
    (tokens,) = inputs((6, 2, 64))
    (weights,) = inputs((6, 2), seed=1)
    for ours in (False, True):
        whole = config(
            **GATED[name],
            gated_linear_unit=True,
            add_bias_linear=bias,
            ffn_hidden_size=24,
        )
        whole.use_te_activation_func = ours
        whole.bias_activation_fusion &= ours  # Megatron's fused functions refuse some of these cases
        mlp = MLP(
            whole, MLPSubmodules(LinearModule, LinearModule, GatedActivation), ffn_hidden_size=24
        ).double()
        torch.manual_seed(0)
        for parameter in mlp.parameters():
            torch.nn.init.normal_(parameter)
        leaves = as_leaves([tokens, weights], torch.float64)
        out, out_bias = mlp(leaves[0], leaves[1] if weighted else None)
        out.square().sum().backward()
        ends.append(
            [out, *(leaf.grad for leaf in leaves[: 1 + weighted]), *(p.grad for p in mlp.parameters())]
        )
        assert set(mlp.state_dict()) == {name for name, _ in mlp.named_parameters()}
        assert (out_bias is None) == (weighted or not bias)
    for found, expected in zip(*ends, strict=True):
        if expected is None:  # the bias that the MLP returns instead of adding it
            assert found is None
        else:
            assert error(found, expected.detach()) <= 1e-14
