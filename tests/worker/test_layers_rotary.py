"""Rotary embeddings compared with complex multiplication in float64, and with Megatron's own function."""

from __future__ import annotations

import pytest
import torch
from megatron.core.models.common.embeddings import rope_utils

from megatron.flagscale.layers import rotary
from megatron.flagscale.layers.rotary import cos_sin, rotate
from tests.worker.test_layers import DEVICES, LIMITS, as_leaves, error, inputs

(PATCH,) = rotary.PATCHES
MEGATRONS = getattr(rope_utils, PATCH.target.rpartition(":")[2])
MEGATRONS = getattr(MEGATRONS, "__wrapped__", MEGATRONS)  # if another test has applied the patches
OURS = PATCH.make(MEGATRONS)
LIMITS = {torch.float64: 1e-14, **LIMITS}


def angles_of(length: int, width: int, interleaved: bool = False) -> torch.Tensor:
    """Return Megatron's angles `[s, 1, 1, width]`: each pair has one."""
    (one,) = inputs((length, width // 2))
    both = torch.stack((one, one), -1).flatten(1) if interleaved else torch.cat((one, one), -1)
    return (both * 3)[:, None, None]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", LIMITS, ids=str)
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotated", [16, 8, 2])
def test_rotation_is_exact(device: str, dtype: torch.dtype, interleaved: bool, rotated: int) -> None:
    heads, grad = (tensor.to(dtype).double() for tensor in inputs((7, 2, 3, 16), (7, 2, 3, 16)))
    angles = angles_of(7, rotated, interleaved)
    cos, sin = (wave.double() for wave in cos_sin(angles, dtype, 1.0, interleaved))
    (found,) = as_leaves([heads], dtype, device)
    out = rotate(found, cos.to(device, dtype), sin.to(device, dtype), interleaved)
    assert out.dtype == dtype
    out.backward(grad.to(device, dtype))

    (exact,) = as_leaves([heads], torch.float64)
    first, second = (
        (slice(0, rotated, 2), slice(1, rotated, 2))
        if interleaved
        else (
            slice(rotated // 2),
            slice(rotated // 2, rotated),
        )
    )
    turned = torch.complex(exact[..., first], exact[..., second]) * torch.complex(cos, sin)
    expected = exact.clone()
    expected[..., first], expected[..., second] = turned.real, turned.imag
    expected.backward(grad)
    assert error(out, expected.detach()) <= LIMITS[dtype]
    assert error(found.grad, exact.grad) <= LIMITS[dtype]


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("rotated", [16, 8])
def test_results_are_those_of_megatron(interleaved: bool, latent: bool, scale: float, rotated: int) -> None:
    heads, grad = inputs((7, 2, 3, 16), (7, 2, 3, 16))
    angles = angles_of(7, rotated, interleaved)
    ends = []
    for function in (MEGATRONS, OURS):
        # A part of the linear layer's output, as Megatron passes it.
        (whole,) = as_leaves([torch.cat((heads, heads), -1)], torch.float64)
        out = function(whole[..., :16], angles, interleaved, mla_rotary_interleaved=latent, mscale=scale)
        out.backward(grad)
        ends.append((out, whole.grad))
    for expected, found in zip(*ends, strict=True):
        assert error(found, expected.detach()) <= 1e-14


@pytest.mark.parametrize(("plain", "rest"), [(0, 0), (16, 0), (3, 5)])
def test_pairs_of_latent_attention_are_turned_as_by_megatron(plain: int, rest: int) -> None:
    heads, grad = inputs(*[(7, 2, 3, plain + 8 + rest)] * 2)
    angles = angles_of(7, 8)
    found, expected = as_leaves([heads, heads], torch.float64)
    out = rotate(found, *cos_sin(angles, torch.float64, 1.5), latent=True, start=plain)
    of_engine = MEGATRONS(expected[..., plain:], angles, mla_rotary_interleaved=True, mscale=1.5)
    of_engine = torch.cat((expected[..., :plain], of_engine), -1)
    for result in (out, of_engine):
        result.backward(grad)
    assert error(out, of_engine.detach()) <= 1e-14
    assert error(found.grad, expected.grad) <= 1e-14


def test_a_rotation_may_have_other_angles_per_sample() -> None:
    """As positions in images have (`mrope`)."""
    (heads,) = inputs((7, 2, 3, 16))
    angles = angles_of(7, 16) * torch.tensor([1.0, 2.0])[:, None, None]
    assert error(OURS(heads, angles), MEGATRONS(heads, angles)) <= 1e-14


def test_cosine_and_sine_are_computed_once_per_precision_and_scale() -> None:
    angles = angles_of(7, 16)
    first = cos_sin(angles, torch.float32, 1.0)
    assert all(one is other for one, other in zip(first, cos_sin(angles, torch.float32, 1.0), strict=True))
    assert cos_sin(angles, torch.bfloat16, 1.0)[0].dtype == torch.bfloat16
    assert torch.equal(cos_sin(angles, torch.float32, 2.0)[0], (2 * torch.cos(angles[..., :8])).float())


def test_changed_angles_are_noticed() -> None:
    angles = angles_of(7, 16)
    cos_sin(angles, torch.float32, 1.0)
    angles += 1
    assert torch.equal(cos_sin(angles, torch.float32, 1.0)[0], torch.cos(angles[..., :8]).float())


def test_cosine_and_sine_are_forgotten_with_the_angles() -> None:
    known = len(rotary._computed)
    angles = angles_of(7, 16)
    cos_sin(angles, torch.float32, 1.0)
    assert len(rotary._computed) == known + 1
    del angles
    assert len(rotary._computed) == known


def test_cosine_and_sine_of_an_inference_serve_a_training() -> None:
    with torch.inference_mode():
        angles = angles_of(7, 16)
        cos_sin(angles, torch.float64, 1.0)
    (heads,) = as_leaves(inputs((7, 2, 3, 16)), torch.float64)
    OURS(heads, angles).sum().backward()
    assert heads.grad is not None
