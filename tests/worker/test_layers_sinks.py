"""Attention with sinks agrees with plain float64 arithmetic, in windows and documents too."""

from __future__ import annotations

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType

from megatron.flagscale.layers import sinks as module_of_sinks
from megatron.flagscale.layers.attention import Attention
from megatron.flagscale.layers.sinks import sink_attention
from tests.worker.test_layers import (
    ALONE,
    DEVICES,
    LIMITS,
    as_leaves,
    causal,
    config,
    documents,
    error,
    inputs,
)

LENGTH, SCALE = 24, 0.3


def exact(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sinks: torch.Tensor, hidden: torch.Tensor
) -> torch.Tensor:
    """Return textbook attention with one more key per head, whose value is zero."""
    repeats = q.size(1) // k.size(1)
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = (q @ k.transpose(-1, -2) * SCALE).masked_fill(hidden, -torch.inf)
    sink = sinks[:, None, None].expand(q.size(0), -1, q.size(2), 1)
    return torch.cat((scores, sink), -1).softmax(-1)[..., :-1] @ v


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("before", [None, 0, 5, 100])
def test_sinks_are_exact(
    device: str, dtype: torch.dtype, packed: bool, before: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module_of_sinks, "_BLOCK", 7)  # several blocks, and a shorter last one
    shapes = (2, 4, LENGTH, 16), (2, 2, LENGTH, 16), (2, 2, LENGTH, 16), (4,), (2, 4, LENGTH, 16)
    q, k, v, sinks, grad = (tensor.to(dtype).double() for tensor in inputs(*shapes))
    behind = torch.arange(LENGTH)[:, None] - torch.arange(LENGTH)
    hidden = causal(LENGTH, LENGTH) | (behind > (LENGTH if before is None else before))
    starts = None
    if packed:
        starts, of_others = documents(2, LENGTH)
        hidden = hidden | of_others
    leaves = as_leaves([q, k, v, sinks], dtype, device)
    out = sink_attention(leaves[0], leaves[1], leaves[2], leaves[3], SCALE, before, starts)
    out.backward(grad.to(device, dtype))
    doubles = as_leaves([q, k, v, sinks], torch.float64)
    expected = exact(doubles[0], doubles[1], doubles[2], doubles[3], hidden)
    expected.backward(grad)
    assert error(out, expected.detach()) <= LIMITS[dtype]
    for found, double in zip(leaves, doubles, strict=True):
        assert found.grad is not None
        assert double.grad is not None
        assert error(found.grad, double.grad) <= LIMITS[dtype]


def test_every_second_layer_attends_to_everything() -> None:
    assert [module_.window for module_ in map(layer, (1, 2, 3))] == [(3, 0), None, (3, 0)]


def layer(number: int) -> Attention:
    made = config(softmax_type="learnable", window_size=(3, 0), window_attn_skip_freq=2)
    return Attention(made, number, AttnMaskType.causal, "self", 0.0, pg_collection=ALONE)


def test_a_low_sink_changes_nothing_and_a_high_one_takes_all() -> None:
    q, k, v = (tensor.float() for tensor in inputs((8, 2, 4, 16), (8, 2, 4, 16), (8, 2, 4, 16)))
    with_sinks = layer(1)
    without = Attention(config(window_size=(3, 0)), 1, AttnMaskType.causal, "self", 0.0, pg_collection=ALONE)
    assert with_sinks.softmax_offset is not None
    torch.nn.init.constant_(with_sinks.softmax_offset, -1e4)
    torch.testing.assert_close(with_sinks(q, k, v, None), without(q, k, v, None))
    torch.nn.init.constant_(with_sinks.softmax_offset, 1e4)
    assert with_sinks(q, k, v, None).abs().max() == 0


def test_masks_are_refused_with_sinks() -> None:
    q, k, v = inputs(*[(8, 2, 4, 16)] * 3)
    with pytest.raises(NotImplementedError, match="`softmax_type: learnable`"):
        layer(1)(q, k, v, causal(8, 8)[None, None])
