"""Weights of experts stored as 4-bit floats (mxfp4), the form in which gpt-oss is published.

`NAME_blocks [experts, rows, blocks, 16]` holds 32 numbers per block, two in a byte, and
`NAME_scales [experts, rows, blocks]` the exponent of each block. The weight itself is stored transposed:
`NAME [experts, blocks * 32, rows]`. Standard library only, except for the arithmetic.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from flagscale.checks.stored_tensors import Stored

if TYPE_CHECKING:
    import torch

BLOCKS, SCALES = "_blocks", "_scales"
_KEYS = ("quant_method", "modules_to_not_convert")
_BYTES = 16
"""Of a block."""
_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Of the lower 3 bits; the highest bit is the sign."""
_BIAS = 127
"""A scale is a power of two whose exponent is stored with this bias (E8M0 of the OCP's MX formats)."""


class Packed(NamedTuple):
    """The two tensors in which a weight is stored."""

    blocks: Stored
    scales: Stored


def is_packed(quantization: Any) -> bool:
    """Return whether a `quantization_config` is that of mxfp4."""
    is_known = isinstance(quantization, dict) and quantization.keys() <= {*_KEYS}
    return is_known and quantization.get("quant_method") == "mxfp4"


def packed_in(stored: Mapping[str, Stored]) -> dict[str, Packed]:
    """Return the weights of which blocks and scales are stored, by name."""
    names = (name.removesuffix(BLOCKS) for name in stored if name.endswith(BLOCKS))
    return {
        name: Packed(stored[name + BLOCKS], stored[name + SCALES])
        for name in names
        if name + SCALES in stored
    }


def unpacked_tensors(stored: Mapping[str, Stored], packed: Mapping[str, Packed]) -> dict[str, Stored]:
    """Return what is stored, with the weights in place of their blocks and scales."""
    parts = {name + part for name in packed for part in (BLOCKS, SCALES)}
    weights = {name: one.blocks._replace(dtype="BF16", shape=_shape(one)) for name, one in packed.items()}
    return {**{name: one for name, one in stored.items() if name not in parts}, **weights}


def _shape(one: Packed) -> tuple[int, ...]:
    *experts, rows, blocks = one.blocks.shape[:-1] if len(one.blocks.shape) > 2 else (0, 0)
    return (*experts, blocks * _BYTES * 2, rows)


def wrong(packed: Mapping[str, Packed]) -> Iterator[str]:
    """Yield each weight whose blocks and scales do not have the precision and shapes of the format."""
    for name, (blocks, scales) in packed.items():
        fits = len(blocks.shape) == 4 and blocks.shape[-1] == _BYTES and scales.shape == blocks.shape[:-1]
        if not fits or (blocks.dtype, scales.dtype) != ("U8", "U8"):
            found = f"{blocks.dtype} {list(blocks.shape)} with scales {scales.dtype} {list(scales.shape)}"
            expected = f"U8 [experts, rows, blocks, {_BYTES}] with scales U8 [experts, rows, blocks]"
            yield f"{name} is stored as {found}; expected: {expected}"


def unpacked(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the weight of an expert in bfloat16, `[columns, rows]`, from its bytes `[rows, blocks, 16]` and
    exponents `[rows, blocks]`.

    Every value is exact in bfloat16, unless its exponent is out of range. transformers computes the same, bit
    for bit (`integrations/mxfp4.py`, 5.19).
    """
    import torch

    signed = (*_VALUES, *(-value for value in _VALUES))
    values = torch.tensor(signed, dtype=torch.bfloat16)
    halves = torch.stack((blocks & 0xF, blocks >> 4), -1).flatten(-2)
    exponents = scales.to(torch.int32) - _BIAS
    return torch.ldexp(values[halves.int()], exponents[..., None]).flatten(-2).t()
