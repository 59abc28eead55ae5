"""From the tokens of a picture to its pixels, with the model's own decoder, inside vLLM's worker.

With `PictureDecoder`, or a class derived from it, as the engine's `worker_extension_cls`,
`collective_rpc("decode_picture", args=(tokens, [height, width]))` returns a list with the PNG file first.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from flagscale.checks.emu3 import Grid


class PictureDecoder:
    """What vLLM's worker gains."""

    model_runner: Any
    rank: int

    def decode_picture(self, tokens: Sequence[int], sides: Sequence[int]) -> bytes | None:
        """Return the picture as a PNG file on the first rank, None on the others.

        Every rank decodes: each one holds the decoder, and parts that vLLM splits need all of them.

        Args:
            tokens: all generated tokens of the picture.
            sides: its height and width in codes.

        Raises:
            ValueError: these are not the tokens of such a picture.
        """
        from vllm.transformers_utils.processor import cached_image_processor_from_config

        model = self.model_runner.get_model().model
        decoded = pixels(model, tokens, Grid(*sides))
        if self.rank:
            return None
        return png(picture(decoded, cached_image_processor_from_config(self.model_runner.model_config)))


@torch.inference_mode()
def pixels(model: Any, tokens: Sequence[int], grid: Grid) -> torch.Tensor:
    """Return the decoder's output, of shape [3, 8 * height, 8 * width], in float32 on CPU.

    Args:
        model: transformers' `Emu3Model`.
        tokens: all generated tokens of the picture.

    Raises:
        ValueError: there are more or fewer tokens than in such a picture, or one is not a code.
    """
    if len(tokens) != grid.tokens:
        what = f"a picture of {grid.height} x {grid.width} codes has {grid.tokens} tokens"
        raise ValueError(f"{what}, not {len(tokens)}")
    mapping = model.vocabulary_mapping
    rows = torch.tensor(tokens[:-3]).view(grid.height, grid.width + 1)
    codes = {*mapping.image_tokens}
    if other := [token for token in rows[:, :-1].flatten().tolist() if token not in codes]:
        raise ValueError(f"token {other[0]} is not a code of a picture")
    device = next(model.vqmodel.parameters()).device
    ids = torch.tensor([tokens], device=device)
    decoded = model.decode_image_tokens(image_tokens=ids, height=grid.height, width=grid.width)
    return decoded[0].float().cpu()


def picture(decoded: torch.Tensor, processor: Any) -> np.ndarray:
    """Return the pixels as uint8 of shape [height, width, 3], by the image processor of the model folder."""
    made = processor.postprocess([decoded], return_tensors="PIL.Image.Image")["pixel_values"]
    return np.asarray(made[0])


def png(picture: np.ndarray) -> bytes:
    """Return a PNG file of pixels (uint8, [height, width, 3])."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, format="PNG")
    return file.getvalue()
