"""What transformers draws and answers with an Emu3, to compare an engine with; always greedy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flagscale.checks import emu3_vocabulary as names
from flagscale_testing.emu3 import CODES, IMAGE_AREA


@dataclass(frozen=True)
class Drawn:
    """A picture of transformers."""

    prompt: list[int]
    negative: list[int]
    grid: tuple[int, int]
    """Height and width in codes."""
    tokens: list[int]
    """All generated ones, with the marks at the end."""
    picture: np.ndarray
    """uint8, of shape [height, width, 3]."""


class Reference:
    """The model and the processor of a folder made by `make_emu3`."""

    def __init__(self, folder: Path) -> None:
        from transformers import Emu3ForConditionalGeneration, Emu3Processor

        self.processor: Any = Emu3Processor.from_pretrained(folder)
        self.model = Emu3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def draw(self, prompt: str, ratio: str, *, scale: float, negative: str) -> Drawn:
        """Draw a picture of the tiny model's area; nothing is added to the prompt."""
        kwargs = {
            "return_for_image_generation": True,
            "ratio": ratio,
            "image_area": IMAGE_AREA,
            "return_tensors": "pt",
        }
        asked, avoided = (self.processor(text=[text], **kwargs) for text in (prompt, negative))
        height, width = (int(side) for side in asked["image_sizes"][0])
        start = asked["input_ids"].shape[1]
        written = self.model.generate(
            input_ids=asked["input_ids"],
            attention_mask=asked["attention_mask"],
            negative_prompt_ids=avoided["input_ids"],
            negative_prompt_attention_mask=avoided["attention_mask"],
            guidance_scale=scale,
            prefix_allowed_tokens_fn=self._allowed(start, height, width),
            max_new_tokens=4 * height * width,  # more than enough: it ends by itself
            do_sample=False,
        )
        tokens = written[:, start:]
        return Drawn(
            asked["input_ids"][0].tolist(),
            avoided["input_ids"][0].tolist(),
            (height, width),
            tokens[0].tolist(),
            self.decode(tokens, height, width),
        )

    @torch.no_grad()
    def decode(self, tokens: torch.Tensor, height: int, width: int) -> np.ndarray:
        """Return the picture of tokens (of shape [1, tokens]) as uint8."""
        decoded = self.model.decode_image_tokens(image_tokens=tokens, height=height, width=width)
        made = self.processor.postprocess(list(decoded.float()), return_tensors="PIL.Image.Image")
        return np.asarray(made["pixel_values"][0])

    @torch.no_grad()
    def answer(self, text: str, pictures: list[Any], tokens: int) -> list[int]:
        """Return the tokens that follow a text with placeholders but without BOS, which the processor adds.

        Each picture is encoded alone, as in vLLM 0.32 (`_unpad_images`). transformers 5.19 pads all pictures
        of one call to the largest, so that the tokens of a smaller one depend on the others.
        """
        given = self.processor(images=pictures, text=[text], return_tensors="pt")
        encoded = [
            self.model.model.get_image_tokens(one["pixel_values"], one["image_sizes"])
            for one in (
                self.processor.image_processor([picture], return_tensors="pt") for picture in pictures
            )
        ]
        ids = given["input_ids"]
        ids[ids == self.processor.image_token_id] = torch.cat(encoded).to(ids.dtype)
        given = {"input_ids": ids, "attention_mask": given["attention_mask"]}
        written = self.model.generate(**given, max_new_tokens=tokens, do_sample=False)
        return [int(one) for one in written[0, ids.shape[1] :]]

    def _allowed(self, start: int, height: int, width: int) -> Any:
        ids = self.processor.tokenizer.get_vocab()
        codes = [ids[names.CODE.format(code)] for code in range(CODES)]
        ends = [ids[one] for one in (names.END_OF_FRAME, names.END_OF_IMAGE, names.END_OF_TEXT)]

        def allowed(_: int, written: torch.Tensor) -> list[int]:
            row, column = divmod(len(written) - start, width + 1)
            if row == height:
                return [ends[column]]
            return [ids[names.END_OF_LINE]] if column == width else codes

        return allowed
