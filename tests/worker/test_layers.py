"""Norms and attention on torch's kernels, compared with plain float64 arithmetic, forward and backward."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.utils._python_dispatch import TorchDispatchMode

from megatron.flagscale.layers.attention import Attention
from megatron.flagscale.layers.documents import document_starts
from megatron.flagscale.layers.kernels import attend, attend_backward, plain_attend, plain_attend_backward
from megatron.flagscale.layers.norm import Norm

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
LIMITS = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
ALONE = SimpleNamespace(tp=SimpleNamespace(size=lambda: 1), cp=SimpleNamespace(size=lambda: 1))


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the relative error in the Euclidean norm."""
    found = found.detach().double().cpu()
    return float((found - expected).norm() / expected.norm())


def config(**settings: Any) -> TransformerConfig:
    heads = settings.pop("heads", 4)
    return TransformerConfig(num_layers=2, hidden_size=16 * heads, num_attention_heads=heads, **settings)


def reference(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, hidden: torch.Tensor, scale: float
) -> torch.Tensor:
    """Return textbook attention, `[s, b, heads, d]` to `[s, b, heads * d]`; `hidden` marks masked pairs."""
    repeats = q.size(2) // k.size(2)
    k, v = k.repeat_interleave(repeats, 2), v.repeat_interleave(repeats, 2)
    scores = torch.einsum("qbhd,kbhd->bhqk", q, k) * scale
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("bhqk,kbhd->qbhd", weights, v).flatten(2)


def inputs(*shapes: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def as_leaves(tensors: list[torch.Tensor], dtype: torch.dtype, device: str = "cpu") -> list[torch.Tensor]:
    return [tensor.to(device, dtype).requires_grad_() for tensor in tensors]


def causal(queries: int, keys: int) -> torch.Tensor:
    return torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)


def documents(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return samples of several documents each, as `document_starts` and as a mask `[batch, 1, s, s]`."""
    tokens = torch.randint(0, 5, (batch, length), generator=torch.Generator().manual_seed(length))
    number = (tokens == 0).cumsum(1) - (tokens == 0).long()  # an end token belongs to the document before it
    other = number[:, None, None, :] != number[:, None, :, None]
    return document_starts(tokens, eod=0), causal(length, length) | other


def check_attention(
    module: Attention,
    shapes: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
    given: torch.Tensor | None,
    hidden: torch.Tensor,
    dtype: torch.dtype,
    device: str,
    scale: float,
) -> None:
    *exact, grad = inputs(*shapes, (*shapes[0][:2], shapes[0][2] * shapes[2][3]))
    # Use the same rounded inputs, so that only the kernel's error is measured.
    exact = [tensor.to(dtype).double() for tensor in exact]
    grad = grad.to(dtype).double()
    leaves = as_leaves(exact, dtype, device)
    out = module.to(device)(*leaves, None if given is None else given.to(device))
    out.backward(grad.to(device, dtype))
    expected_leaves = as_leaves(exact, torch.float64)
    expected = reference(expected_leaves[0], expected_leaves[1], expected_leaves[2], hidden, scale)
    expected.backward(grad)
    assert out.dtype == dtype
    assert error(out, expected.detach()) <= LIMITS[dtype]
    for leaf, expected_leaf in zip(leaves, expected_leaves, strict=True):
        assert leaf.grad is not None
        assert expected_leaf.grad is not None
        assert error(leaf.grad, expected_leaf.grad) <= LIMITS[dtype]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("length", [2, 7, 64, 129])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("kind", ["causal", "documents", "mask", "everything", "window", "both"])
def test_attention_is_exact(device: str, dtype: torch.dtype, length: int, groups: int, kind: str) -> None:
    window = (5, 0) if kind in ("window", "both") else None
    mask_type = AttnMaskType.no_mask if kind == "everything" else AttnMaskType.causal
    module = Attention(
        config(num_query_groups=groups, window_size=window), 1, mask_type, "self", 0.0, pg_collection=ALONE
    )
    starts, mask = documents(3, length)
    out_of_window = torch.arange(length)[:, None] - torch.arange(length) > 5
    given, hidden = {
        "causal": (None, causal(length, length)),
        "documents": (starts, mask),
        "mask": (mask, mask),
        "everything": (None, torch.zeros(length, length, dtype=torch.bool)),
        "window": (None, causal(length, length) | out_of_window),
        "both": (starts, mask | out_of_window),
    }[kind]
    shapes = ((length, 3, 4, 16), (length, 3, groups, 16), (length, 3, groups, 16))
    check_attention(module, shapes, given, hidden, dtype, device, scale=0.25)


@pytest.mark.parametrize(("packed", "width"), [(True, 16), (True, 12), (False, 12)])
def test_memory_grows_linearly_with_the_length(packed: bool, width: int) -> None:
    """No tensor, forward or backward, is larger than the inputs: none has the squared length.

    Without documents and with values as wide as keys, the kernel is torch's own.
    """
    length, batch = 256, 2
    starts = documents(batch, length)[0] if packed else None
    module = Attention(config(), 1, AttnMaskType.causal, "self", 0.0, pg_collection=ALONE)
    shapes = [*[(length, batch, 4, 16)] * 2, (length, batch, 4, width)]
    leaves = as_leaves(inputs(*shapes), torch.float32)
    with Largest() as largest:
        module(*leaves, starts).sum().backward()
    assert largest.numel == leaves[0].numel() < length * length


class Largest(TorchDispatchMode):
    """Record the largest number of elements in a result of any operation, except views."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple) else (results,):
            if isinstance(result, torch.Tensor):
                self.numel = max(self.numel, result.untyped_storage().size() // result.element_size())
        return results


def test_a_document_starts_after_the_end_of_the_previous_one() -> None:
    tokens = torch.tensor([[5, 0, 7, 7, 0, 0, 3], [0, 1, 2, 3, 4, 5, 0]])
    assert document_starts(tokens, eod=0).tolist() == [[0, 0, 2, 2, 2, 5, 6], [0, 1, 1, 1, 1, 1, 1]]


def test_a_given_softmax_scale_is_used() -> None:
    module = Attention(config(), 1, AttnMaskType.causal, "self", 0.0, softmax_scale=0.6, pg_collection=ALONE)
    shape = (9, 2, 4, 16)
    check_attention(module, (shape, shape, shape), None, causal(9, 9), torch.float32, "cpu", scale=0.6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("queries", "groups", "width"), [(9, 4, 24), (9, 2, 8), (64, 4, 8), (5, 4, 8)])
def test_values_may_differ_in_width(
    device: str, dtype: torch.dtype, packed: bool, queries: int, groups: int, width: int
) -> None:
    length = max(queries, 9)
    module = Attention(
        config(num_query_groups=groups), 1, AttnMaskType.causal, "self", 0.0, pg_collection=ALONE
    )
    shapes = ((queries, 2, 4, 16), (length, 2, groups, 16), (length, 2, groups, width))
    starts, mask = documents(2, length) if packed else (None, causal(length, length))
    hidden = mask[..., length - queries :, :]
    check_attention(module, shapes, starts, hidden, dtype, device, scale=0.25)


@pytest.mark.parametrize("packed", [False, True])
def test_values_of_another_width_are_kept_without_padding(packed: bool) -> None:
    """The result is stored as the next layer reads it: otherwise, that layer would keep a second copy."""
    module = Attention(config(), 1, AttnMaskType.causal, "self", 0.0, pg_collection=ALONE)
    leaves = as_leaves(inputs(*[(9, 3, 4, 16)] * 2, (9, 3, 4, 8)), torch.float32)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = module(*leaves, documents(3, 9)[0] if packed else None)
    assert out.untyped_storage()._cdata in kept
    log_sum_exp = 3 * 4 * 9
    assert sum(kept.values()) == 4 * (sum(leaf.numel() for leaf in leaves) + out.numel() + log_sum_exp)


@pytest.mark.parametrize("queries", [1, 3])
def test_fewer_queries_than_keys_are_the_last_positions(queries: int) -> None:
    module = Attention(config(), 1, AttnMaskType.causal, "self", 0.0, pg_collection=ALONE)
    shapes = ((queries, 2, 4, 16), (8, 2, 4, 16), (8, 2, 4, 16))
    check_attention(module, shapes, None, causal(queries, 8), torch.float32, "cpu", scale=0.25)


def test_a_query_with_all_keys_masked_gives_finite_results() -> None:
    module = Attention(config(), 1, AttnMaskType.padding, "self", 0.0, pg_collection=ALONE)
    leaves = as_leaves(inputs(*[(8, 2, 4, 16)] * 3), torch.float32)
    mask = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    mask[0, :, 3] = True
    out = module(*leaves, mask)
    out.sum().backward()
    assert all(tensor.isfinite().all() for tensor in (out, *(leaf.grad for leaf in leaves)))


def test_bias_and_thd_batches_are_refused() -> None:
    module = Attention(config(), 1, AttnMaskType.causal, "self", 0.0, pg_collection=ALONE)
    q, k, v = inputs(*[(8, 2, 4, 16)] * 3)
    with pytest.raises(NotImplementedError, match="THD"):
        module(q, k, v, None, packed_seq_params=object())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize(
    ("attend_", "back"), [(attend, attend_backward), (plain_attend, plain_attend_backward)]
)
@pytest.mark.parametrize("width", [8, 16, 24])
def test_kernels_return_the_log_sum_exp(
    device: str, dtype: torch.dtype, is_causal: bool, attend_: Any, back: Any, width: int
) -> None:
    q, k, v, grad = (
        tensor.to(dtype).double()
        for tensor in inputs((2, 4, 24, 16), (2, 2, 24, 16), (2, 2, 24, width), (2, 4, 24, width))
    )
    placed = [tensor.to(device, dtype) for tensor in (q, k, v)]
    out, lse = attend_(*placed, is_causal, 0.3)
    grads = back(grad.to(device, dtype), *placed, out, lse, is_causal, 0.3)
    exact, exact_lse = plain_exact(q, k, v, is_causal)
    assert error(out, exact.detach()) <= LIMITS[dtype]
    assert error(lse, exact_lse.detach()) <= 1e-4
    for found, leaf in zip(grads, plain_grads(q, k, v, grad, is_causal), strict=True):
        assert error(found, leaf) <= LIMITS[dtype]


def plain_exact(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    scores = q @ k.transpose(-1, -2) * 0.3
    if is_causal:
        scores = scores.masked_fill(causal(24, 24), -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def plain_grads(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, grad: torch.Tensor, is_causal: bool
) -> list[torch.Tensor]:
    leaves = as_leaves([q, k, v], torch.float64)
    plain_exact(leaves[0], leaves[1], leaves[2], is_causal)[0].backward(grad)
    return [leaf.grad for leaf in leaves if leaf.grad is not None]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("normalization", ["RMSNorm", "LayerNorm"])
@pytest.mark.parametrize("zero_centered", [False, True])
@pytest.mark.parametrize("width", [3, 33, 256])
def test_norms_are_exact(
    device: str, dtype: torch.dtype, normalization: str, zero_centered: bool, width: int
) -> None:
    settings = config(normalization=normalization, layernorm_zero_centered_gamma=zero_centered)
    norm = Norm(settings, width, eps=1e-3)
    x, weight, bias, grad = (
        tensor.to(dtype).double() for tensor in inputs((5, 3, width), (width,), (width,), (5, 3, width))
    )
    with torch.no_grad():
        norm.weight.copy_(weight)
        if norm.bias is not None:
            norm.bias.copy_(bias)
    norm.to(device, dtype)
    (found,) = as_leaves([x], dtype, device)
    norm(found).backward(grad.to(device, dtype))

    exact, exact_weight, exact_bias = as_leaves([x, weight, bias], torch.float64)
    centered = exact - exact.mean(-1, keepdim=True) if normalization == "LayerNorm" else exact
    scaled = centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + 1e-3)
    # The sum weight + 1 is rounded too.
    factor = (exact_weight + 1 if zero_centered else exact_weight).to(dtype).double()
    expected = scaled * factor + (exact_bias if normalization == "LayerNorm" else 0)
    expected.backward(grad)

    assert torch.allclose(norm(found).double().cpu(), expected, rtol=LIMITS[dtype], atol=LIMITS[dtype])
    assert error(norm.weight.grad, exact_weight.grad) <= LIMITS[dtype]
    if norm.bias is not None:
        assert error(norm.bias.grad, exact_bias.grad) <= LIMITS[dtype]
    assert error(found.grad, exact.grad) <= LIMITS[dtype]


@pytest.mark.parametrize("normalization", ["RMSNorm", "LayerNorm"])
def test_a_norm_has_the_precision_of_its_weight(normalization: str) -> None:
    """With `--fp32-residual-connection`, its input is more precise; the next linear layer is not."""
    norm = Norm(config(normalization=normalization, layernorm_zero_centered_gamma=False), 64).bfloat16()
    x, grad = (tensor.bfloat16().double() for tensor in inputs((4, 64), (4, 64)))
    ends = []
    for dtype in (torch.float32, torch.bfloat16):
        (given,) = as_leaves([x], dtype)
        out = norm(given)
        assert out.dtype == torch.bfloat16
        out.backward(grad.bfloat16())
        assert given.grad is not None
        assert given.grad.dtype == dtype
        ends.append((out, given.grad))
    assert torch.equal(ends[0][0], ends[1][0])
    assert error(ends[1][1], ends[0][1]) <= LIMITS[torch.bfloat16]


def test_a_new_norm_only_scales_its_input() -> None:
    for zero_centered in (False, True):
        norm = Norm(config(normalization="RMSNorm", layernorm_zero_centered_gamma=zero_centered), 64, 0.0)
        (x,) = inputs((4, 64))
        assert error(norm.double()(x), x / x.square().mean(-1, keepdim=True).sqrt()) < 1e-12


def test_norm_gradients_are_summed_over_a_sequence_parallel_group() -> None:
    for parallel in (False, True):
        settings = SimpleNamespace(
            normalization="LayerNorm",
            layernorm_zero_centered_gamma=False,
            sequence_parallel=parallel,
            params_dtype=torch.float32,
        )
        norm = Norm(settings, 8)
        assert [parameter.sequence_parallel for parameter in norm.parameters()] == [parallel] * 2


def test_an_unknown_normalization_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown normalization `L2Norm`"):
        Norm(SimpleNamespace(**vars(config()) | {"normalization": "L2Norm"}), 8)
