"""The prompts of Emu3: of a picture to draw, and of a question about pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flagscale.checks import emu3_vocabulary as names
from flagscale.checks.emu3 import NEGATIVE, SCALE, Grid, too_long
from vllm_flagscale.emu3.grammar import GRID
from vllm_flagscale.guidance.request import extra_args

SUFFIX = " masterpiece, film grained, best quality."
"""Follows each prompt of a picture (`POSITIVE_PROMPT` of v0.6.0's inference_emu3.py and of BAAI's README)."""
TEMPERATURE, TOP_K = 1.0, 2048
"""How BAAI's README draws."""


@dataclass(frozen=True)
class PictureRequest:
    """A picture to draw: what the engine is given for it."""

    prompt: tuple[int, ...]
    negative: tuple[int, ...]
    grid: Grid
    scale: float

    def sampling(self, *, temperature: float = TEMPERATURE, top_k: int = TOP_K, **others: Any) -> Any:
        """Return the `SamplingParams`; `others` are `seed`, `n`, `top_p`, and the like."""
        from vllm import SamplingParams

        return SamplingParams(
            temperature=temperature,
            top_k=top_k,
            max_tokens=self.grid.tokens,
            detokenize=False,  # codes are no text
            extra_args={**extra_args(self.scale, self.negative), GRID: [self.grid.height, self.grid.width]},
            **others,
        )


def picture_request(
    tokenizer: Any,
    prompt: str,
    grid: Grid,
    positions: int,
    *,
    scale: float = SCALE,
    negative: str | Sequence[int] = NEGATIVE,
    suffix: str = SUFFIX,
) -> PictureRequest:
    """Return the request for a picture.

    Args:
        tokenizer: of the model.
        positions: of the model, or fewer if the engine has a shorter limit (`max_model_len`).
        scale: of guidance; 1 draws without it.
        negative: text, which is followed by the size but not by `suffix`, or the ids of a whole prompt.
        suffix: follows the prompt.

    Raises:
        ValueError: a text is empty or contains a special token, an id is not one of the model's, or the
            picture does not fit.
    """
    asked = _ids(tokenizer, "the prompt", prompt, suffix, grid)
    if isinstance(negative, str):
        avoided = _ids(tokenizer, "the negative prompt", negative, "", grid)
    else:
        avoided = tuple(negative)
        if (largest := max(avoided)) >= len(tokenizer):
            raise ValueError(
                f"the negative prompt: {largest} is not an id of the model's {len(tokenizer)} tokens"
            )
    if what := too_long(grid, max(len(asked), len(avoided)), positions):
        raise ValueError(what)
    return PictureRequest(asked, avoided, grid, scale)


def _ids(tokenizer: Any, what: str, text: str, suffix: str, grid: Grid) -> tuple[int, ...]:
    """Return the ids that transformers' `Emu3Processor(return_for_image_generation=True)` gives a text."""
    _refuse_other_than_text(tokenizer, what, text)
    if suffix:
        _refuse_other_than_text(tokenizer, f"the suffix of {what}", suffix)
    size = f"{names.BEGIN_OF_IMAGE}{grid.height}*{grid.width}{names.BEGIN_OF_CODES}"
    return tuple(tokenizer(f"{tokenizer.bos_token}{text}{suffix}{size}").input_ids)


def _refuse_other_than_text(tokenizer: Any, what: str, text: str) -> None:
    if not text.strip():
        raise ValueError(f"{what} is empty")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can hold one, and the tokenizer raises a TypeError
        raise ValueError(f"{what} contains half of a surrogate pair at character {error.start}") from None
    special = {*tokenizer.get_added_vocab().values()}
    if found := [one for one in tokenizer(text, add_special_tokens=False).input_ids if one in special]:
        raise ValueError(f"{what} contains the special token {tokenizer.convert_ids_to_tokens(found[0])}")


def question_text(tokenizer: Any, question: str, pictures: int = 1) -> str:
    """Return the prompt of a question about pictures, in the form of the model's chat template.

    The text begins with BOS. vLLM 0.32 puts none in front of a text that comes with a picture (transformers'
    processor does), and the answer differs without it. It is one token, since it is Emu3's own text for it.

    Raises:
        ValueError: the question is empty or contains a special token.
    """
    _refuse_other_than_text(tokenizer, "the question", question)
    content = [*({"type": "image"} for _ in range(pictures)), {"type": "text", "text": question}]
    template = chat_template(tokenizer.chat_template)
    messages = [{"role": "user", "content": content}]
    text = tokenizer.apply_chat_template(
        messages, chat_template=template, tokenize=False, add_generation_prompt=True
    )
    return str(text)


def chat_template(given: str | None) -> str:
    """Return a model's chat template for vLLM, with BOS in front; Emu3-Chat's own form if the model has none.

    A template that writes BOS itself is returned as it is.
    """
    template = given or names.CHAT_TEMPLATE
    has_bos = "bos_token" in template or names.BEGIN_OF_TEXT in template
    return template if has_bos else "{{ bos_token }}" + template
