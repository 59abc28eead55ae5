"""Weights stored as 8-bit floats with a scale for each block, the form in which DeepSeek-V3 is published.

`config.json` names the size of the blocks (`quantization_config`, `weight_block_size`). Beside a weight
`NAME` of float8_e4m3fn there is `NAME_scale_inv`, with one number per block; the last ones may be smaller.
Standard library only, except for the arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from megatron.flagscale.convert.json_values import is_size

if TYPE_CHECKING:
    import torch

KEY, SCALES, STORED = "quantization_config", "_scale_inv", "F8_E4M3"
"""The key of `config.json`, the end of the names of scales, and the code of such weights in safetensors."""
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "quant_method": ("fp8",),
    "fmt": ("e4m3", None),
    "scale_fmt": ("float", "ue8m0", None),  # how scales were rounded; they are stored as plain numbers
}
_OF_INFERENCE = ("activation_scheme", "weight_block_size", "modules_to_not_convert", "ignored_layers")
"""Keys that do not change the values of the weights, beside the size of blocks."""

Block = tuple[int, int]


def block_of(quantization: Any) -> Block | None:
    """Return the rows and columns of a block, given a `quantization_config`; None if it has another form."""
    if not isinstance(quantization, dict):
        return None
    size = quantization.get("weight_block_size")
    is_known = all(quantization.get(key) in values for key, values in _ONLY.items())
    is_known = is_known and quantization.keys() <= {*_ONLY, *_OF_INFERENCE}
    if not is_known or not isinstance(size, list) or len(size) != 2 or not all(map(is_size, size)):
        return None
    return size[0], size[1]


def scales_shape(shape: tuple[int, ...], block: Block) -> tuple[int, ...]:
    """Return the shape of the scales of a weight."""
    return tuple(-(-size // step) for size, step in zip(shape, block, strict=True))


def scaled(weight: torch.Tensor, scales: torch.Tensor, block: Block) -> torch.Tensor:
    """Return the weight `[rows, columns]` in bfloat16: each value times its block's scale, computed in fp32.

    This is `weight_dequant` of DeepSeek-V3's `inference/kernel.py`, bit for bit.
    """
    import torch

    made = torch.empty(weight.shape, dtype=torch.bfloat16)
    rows, width = block[0], weight.shape[1]
    columns = min(block[1], width)
    for number, factors in enumerate(scales.float()):
        place = slice(number * rows, (number + 1) * rows)
        made[place] = weight[place].float() * factors.repeat_interleave(columns)[:width]
    return made
