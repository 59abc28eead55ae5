"""Attention with capped scores, and capped logits, compared with plain float64 arithmetic."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType

from megatron.flagscale.layers.attention import Attention
from megatron.flagscale.layers.soft_cap import cap_logits
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

CAP, SCALE, HEADS = 0.7, 0.25, 4
"""So small a cap changes all scores of random inputs."""


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor, cap: float
) -> torch.Tensor:
    k, v = (tensor.repeat_interleave(HEADS // k.size(2), 2) for tensor in (k, v))
    scores = torch.einsum("qbhd,kbhd->bhqk", q, k) * SCALE
    weights = (cap * torch.tanh(scores / cap)).masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,kbhd->qbhd", weights, v).flatten(2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", ["causal", "documents", "mask", "everything", "window", "last queries"])
def test_capped_attention_is_exact(device: str, dtype: torch.dtype, groups: int, kind: str) -> None:
    length, queries = 33, 9 if kind == "last queries" else 33
    starts, mask = documents(3, length)
    out_of_window = torch.arange(length)[:, None] - torch.arange(length) > 5
    given, hidden = {
        "causal": (None, causal(length, length)),
        "documents": (starts, mask),
        "mask": (mask, mask),
        "everything": (None, torch.zeros(length, length, dtype=torch.bool)),
        "window": (None, causal(length, length) | out_of_window),
        "last queries": (None, causal(queries, length)),
    }[kind]
    kind_of_mask = AttnMaskType.no_mask if kind == "everything" else AttnMaskType.causal
    settings = config(num_query_groups=groups, window_size=(5, 0) if kind == "window" else None)
    settings.attn_logit_softcapping = CAP
    module = Attention(settings, 1, kind_of_mask, "self", 0.0, pg_collection=ALONE).to(device)
    shapes = ((queries, 3, HEADS, 16), (length, 3, groups, 16), (length, 3, groups, 16))
    *exact, grad = (one.to(dtype).double() for one in inputs(*shapes, (queries, 3, HEADS * 16)))
    leaves, expected_leaves = as_leaves(exact, dtype, device), as_leaves(exact, torch.float64)
    out = module(*leaves, None if given is None else given.to(device))
    out.backward(grad.to(device, dtype))
    expected = reference(*expected_leaves, hidden, CAP)
    expected.backward(grad)
    assert out.dtype == dtype
    assert error(out, expected.detach()) <= LIMITS[dtype]
    for leaf, expected_leaf in zip(leaves, expected_leaves, strict=True):
        assert leaf.grad is not None
        assert expected_leaf.grad is not None
        assert error(leaf.grad, expected_leaf.grad) <= LIMITS[dtype]
    assert error(reference(*expected_leaves, hidden, 1e6), expected.detach()) > 0.01


def test_nothing_of_the_squared_length_is_kept() -> None:
    length, kept = 256, 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        kept = max(kept, tensor.numel())
        return tensor

    settings = config(window_size=(100, 0))
    settings.attn_logit_softcapping = CAP
    module = Attention(settings, 1, AttnMaskType.causal, "self", 0.0, pg_collection=ALONE)
    leaves = as_leaves(inputs(*[(length, 1, HEADS, 16)] * 3), torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        module(*leaves, None)
    assert kept == leaves[0].numel() < length * length


def test_logits_are_capped_before_the_loss() -> None:
    chunk = SimpleNamespace(_scale_logits=lambda logits: logits)
    cap_logits(30.0, [chunk])
    assert torch.equal(chunk._scale_logits(torch.tensor([0.0, 1e4, -1e4])), torch.tensor([0.0, 30.0, -30.0]))
    half = chunk._scale_logits(torch.tensor([15.0]))
    assert error(half, 30 * torch.tanh(torch.tensor([0.5]).double())) < 1e-6
