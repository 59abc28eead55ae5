"""The adapters of one linear layer compute what LoRA computes, written here in plain torch."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.transformer_config import TransformerConfig

from flagscale_testing.one_rank import one_rank
from megatron.flagscale.layers.activation import ActivatedLinear
from megatron.flagscale.lora import layer
from megatron.flagscale.lora.attach import add_to

HEADS, GROUPS, DIM, HIDDEN, FFN, RANK, ALPHA = 4, 2, 6, 20, 28, 3, 12.0
ROWS = {
    "q_proj": HEADS * DIM,
    **dict.fromkeys(("k_proj", "v_proj"), GROUPS * DIM),
    "o_proj": HIDDEN,
    **dict.fromkeys(("gate_proj", "up_proj"), FFN),
    "down_proj": HIDDEN,
}
JOINED = {
    "self_attention.linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "self_attention.linear_proj": ("o_proj",),
    "mlp.linear_fc1": ("gate_proj", "up_proj"),
    "mlp.linear_fc2": ("down_proj",),
}
INPUTS = dict(zip(JOINED, (HIDDEN, HEADS * DIM, HIDDEN, 2 * FFN), strict=True))
"""The size of what each layer is given; the last one computes the activation of it."""


@pytest.fixture(autouse=True, scope="module")
def groups() -> Iterator[None]:
    """Form the groups of a single rank."""
    with one_rank(1):
        yield


@pytest.fixture(autouse=True)
def one_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw masks from torch's own generator: the engine's have no seeds here."""
    monkeypatch.setattr(layer, "get_cuda_rng_tracker", lambda: SimpleNamespace(fork=nullcontext))


def chunk(dtype: torch.dtype = torch.float64) -> Any:
    """Return a part of a model: an embedding and the linear layers of one decoder layer."""
    config = TransformerConfig(
        num_layers=1,
        hidden_size=HIDDEN,
        ffn_hidden_size=FFN,
        num_attention_heads=HEADS,
        num_query_groups=GROUPS,
        kv_channels=DIM,
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        use_cpu_initialization=True,
    )
    common = {"config": config, "init_method": torch.nn.init.normal_, "bias": False, "skip_bias_add": True}
    block = torch.nn.Module()
    block.layer_number = 4
    block.self_attention, block.mlp = torch.nn.Module(), torch.nn.Module()
    qkv = (HEADS + 2 * GROUPS) * DIM
    block.self_attention.linear_qkv = ColumnParallelLinear(HIDDEN, qkv, **common)
    block.self_attention.linear_proj = RowParallelLinear(
        HEADS * DIM, HIDDEN, input_is_parallel=True, **common
    )
    block.mlp.linear_fc1 = ColumnParallelLinear(HIDDEN, 2 * FFN, **common)
    block.mlp.linear_fc2 = ActivatedLinear(FFN, HIDDEN, input_is_parallel=True, **common)
    made = torch.nn.Module()
    made.embedding = torch.nn.Embedding(8, HIDDEN)
    made.decoder = torch.nn.Module()
    made.decoder.layers = torch.nn.ModuleList([block])
    return made.to(dtype)


def adapted(**more: Any) -> Any:
    """Return that part with adapters whose B is drawn too."""
    made = chunk()
    torch.manual_seed(1)
    add_to(made, settings(**more))
    for name, parameter in made.named_parameters():
        if name.endswith(".b.weight"):
            torch.nn.init.normal_(parameter)
    return made


def settings(**more: Any) -> Namespace:
    given = {"lora_rank": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.0, "lora_targets": None}
    return Namespace(**{**given, "seed": 5, "swiglu": True, **more})


def of(made: Any, name: str) -> Any:
    return made.decoder.layers[0].get_submodule(name)


def by_projection(weight: torch.Tensor, name: str) -> list[torch.Tensor]:
    """Return the weights `[out, in]` of each projection, from those of a layer in Megatron's order."""
    if not name.endswith("qkv"):
        return [*weight.chunk(len(JOINED[name]))]
    per_group = HEADS // GROUPS
    heads = weight.split(DIM)
    query, key, value = [], [], []
    for group in range(GROUPS):
        first = group * (per_group + 2)
        query += heads[first : first + per_group]
        key.append(heads[first + per_group])
        value.append(heads[first + per_group + 1])
    return [torch.cat(parts) for parts in (query, key, value)]


def plain(made: Any, name: str, inputs: torch.Tensor) -> list[torch.Tensor]:
    """Return each projection's output, by LoRA's formula."""
    linear = of(made, name)
    if name == "mlp.linear_fc2":
        gate, up = inputs.chunk(2, -1)
        inputs = F.silu(gate) * up
    outputs = []
    for projection, weight in zip(JOINED[name], by_projection(linear.weight, name), strict=True):
        out = inputs @ weight.T
        if projection in linear.adapters:
            one = linear.adapters[projection]
            out = out + ALPHA / RANK * (inputs @ one.a.weight.T @ one.b.weight.T)
        outputs.append(out)
    return outputs


@pytest.mark.parametrize("targets", [None, ["k_proj", "o_proj", "up_proj", "down_proj"]])
@pytest.mark.parametrize("name", JOINED)
def test_outputs_and_gradients_are_those_of_plain_lora(name: str, targets: list[str] | None) -> None:
    made = adapted(lora_targets=targets)
    linear = of(made, name)
    inputs = torch.randn(5, 2, INPUTS[name], dtype=torch.float64, requires_grad=True)
    wanted = plain(made, name, inputs)
    factors = [torch.randn_like(one) for one in wanted]
    leaves = [inputs, *linear.adapters.parameters()]
    expected = torch.autograd.grad(
        sum((one * factor).sum() for one, factor in zip(wanted, factors, strict=True)), leaves
    )
    out, _ = linear(inputs)
    found = by_projection(out.flatten(0, 1).T, name)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other.flatten(0, 1).T)
    total = sum((one * other.flatten(0, 1).T).sum() for one, other in zip(found, factors, strict=True))
    for one, other in zip(torch.autograd.grad(total, leaves), expected, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", JOINED)
def test_merged_weights_compute_the_same(name: str) -> None:
    made = adapted()
    linear, merged = of(made, name), of(chunk(), name)
    changes = [
        ALPHA / RANK * one.b.weight @ one.a.weight for one in (linear.adapters[part] for part in JOINED[name])
    ]
    # The rows of each projection, where the layer has them.
    numbers = torch.arange(linear.weight.size(0))[:, None]
    places = torch.cat(by_projection(numbers, name)).flatten()
    with torch.no_grad():
        merged.weight.copy_(linear.weight)
        merged.weight[places] += torch.cat(changes)
        inputs = torch.randn(5, 2, INPUTS[name], dtype=torch.float64)
        torch.testing.assert_close(merged(inputs)[0], linear(inputs)[0])


def test_only_adapters_are_trained_and_begin_as_the_base() -> None:
    made, base = chunk(), chunk()
    add_to(made, settings())
    trained = {name: one for name, one in made.named_parameters() if one.requires_grad}
    assert {name.removeprefix("decoder.layers.0."): tuple(one.shape) for name, one in trained.items()} == {
        f"{layer}.adapters.{part}.{matrix}.weight": shape
        for layer, parts in JOINED.items()
        for part in parts
        for matrix, shape in (
            ("a", (RANK, of(base, layer).input_size)),
            ("b", (ROWS[part], RANK)),
        )
    }
    for name, one in trained.items():
        if name.endswith(".b.weight"):
            assert not one.any()
        else:
            # Uniform between -1 and 1 over the root of the number of inputs.
            limit = one.size(1) ** -0.5
            assert 0.8 * limit < one.abs().max() <= limit
    firsts = {one[0, 0].item() for name, one in trained.items() if name.endswith(".a.weight")}
    assert len(firsts) == len(ROWS)


def test_an_adapter_is_drawn_by_the_name_of_its_layer_in_the_whole_model() -> None:
    makes = [chunk(), chunk(), chunk()]
    makes[1].decoder.layers[0].layer_number = 5
    for made, seed in zip(makes, (5, 5, 6), strict=True):
        add_to(made, settings(seed=seed))
    first, of_another_layer, of_another_seed = (
        of(made, "mlp.linear_fc2").adapters["down_proj"].a.weight for made in makes
    )
    assert not torch.equal(first, of_another_layer)
    assert not torch.equal(first, of_another_seed)
    again = chunk()
    add_to(again, settings(lora_targets=["down_proj"]))
    assert torch.equal(first, of(again, "mlp.linear_fc2").adapters["down_proj"].a.weight)


@pytest.mark.parametrize("name", JOINED)
def test_dropout_drops_inputs_of_adapters_in_training_only(name: str) -> None:
    made = adapted(lora_dropout=0.4)
    linear = of(made, name)
    inputs = torch.randn(5, 2, INPUTS[name], dtype=torch.float64)
    again = [linear(inputs)[0] for _ in range(2)]
    assert not torch.equal(*again)
    made.eval()
    torch.testing.assert_close(
        by_projection(linear(inputs)[0].flatten(0, 1).T, name),
        [one.flatten(0, 1).T for one in plain(made, name, inputs)],
    )


def test_kept_inputs_are_scaled_so_that_the_mean_stays() -> None:
    made = adapted(lora_dropout=0.25, lora_targets=["o_proj"])
    linear = of(made, "self_attention.linear_proj")
    adapter = linear.adapters["o_proj"]
    size = HEADS * DIM
    with torch.no_grad():
        linear.weight.zero_()
        # A picks the first inputs, B puts them into the first outputs.
        adapter.a.weight.copy_(torch.eye(RANK, size))
        adapter.b.weight.copy_(torch.eye(HIDDEN, RANK))
        out = linear(torch.ones(4000, 1, size, dtype=torch.float64))[0][..., :RANK] / (ALPHA / RANK)
    assert {round(float(one), 6) for one in out.unique()} == {0.0, round(1 / 0.75, 6)}
    assert out.mean() == pytest.approx(1, abs=0.05)


def test_the_output_of_the_embedding_requires_a_gradient_only_in_training() -> None:
    made = adapted()
    ids = torch.tensor([[1, 2]])
    assert made.embedding(ids).requires_grad
    with torch.no_grad():
        assert not made.embedding(ids).requires_grad
