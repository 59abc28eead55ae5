"""The fields of `POST /v1/images/generations`: OpenAI's, and those of guidance. This needs no engine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

MOST_PICTURES = 10
"""OpenAI's limit of `n`."""
_LAST_SEED = 2**62
_GUIDANCE = {"guidance_scale": "scale", "negative_prompt": "negative", "prompt_suffix": "suffix"}
_SAMPLING = ("temperature", "top_k", "top_p")


class FieldError(ValueError):
    """Fields that are refused: the message names all of them, `field` only the first one."""

    def __init__(self, wrong: list[tuple[str, str]]) -> None:
        super().__init__("; ".join(what for _, what in wrong))
        self.field = wrong[0][0]


@dataclass(frozen=True)
class Asked:
    """What one request asks for. None: the model's default."""

    prompt: str
    model: str | None = None
    n: int = 1
    size: str | None = None
    """`1024x576` (width x height in pixels) or a ratio like `16:9`."""
    seed: int | None = None
    guidance: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of `prompts.picture_request`: those that are given of `scale`, `negative` and `suffix`."""
    sampling: Mapping[str, Any] = field(default_factory=dict)
    """Those that are given of `temperature`, `top_k` and `top_p`."""


def read(body: Mapping[str, Any]) -> Asked:
    """Return what the body of a request asks for. A field that is null counts as absent.

    Raises:
        FieldError: with every field that is unknown, malformed, or would have no effect.
    """
    given = {name: value for name, value in body.items() if value is not None}
    if wrong := [*_violations(given)]:
        raise FieldError(wrong)
    if given.get("size") == "auto":
        del given["size"]
    return Asked(
        **{name: given[name] for name in ("prompt", "model", "n", "size", "seed") if name in given},
        guidance={place: given[name] for name, place in _GUIDANCE.items() if name in given},
        sampling={name: given[name] for name in _SAMPLING if name in given},
    )


def _violations(given: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if "prompt" not in given:
        yield "prompt", "`prompt` is missing"
    for name, value in given.items():
        if name in _OURS:
            holds, what = _OURS[name]
            if not holds(value):
                yield name, f"`{name}` takes {what}, not {_shown(value)}"
        elif name in _WITHOUT_EFFECT:
            allowed, why = _WITHOUT_EFFECT[name]
            if allowed is not None and value not in allowed:
                yield name, f"`{name}`: {_shown(value)} is not supported; {why}"
        else:
            near = get_close_matches(str(name), [*_OURS, *_WITHOUT_EFFECT], 1)
            yield str(name), f"unknown field `{name}`{f'; did you mean `{near[0]}`?' if near else ''}"
    if given.get("temperature") == 0 and _is_count(given.get("n")) and given["n"] > 1:
        yield "n", "`n` above 1 needs a `temperature` above 0: otherwise all pictures would be the same"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MOST_PICTURES


def _is_seed(value: Any) -> bool:
    return type(value) is int and 0 <= value <= _LAST_SEED


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def _is_top_k(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_top_p(value: Any) -> bool:
    return _is_number(value) and 0 < value <= 1


_OURS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "prompt": (_is_text, "a text that is not empty"),
    "model": (lambda value: isinstance(value, str), "the name of a model"),
    "n": (_is_count, f"a whole number from 1 to {MOST_PICTURES}"),
    "size": (_is_text, "`auto`, pixels like `1024x576`, or a ratio like `16:9`"),
    "seed": (_is_seed, "a whole number from 0 to 2^62"),
    "negative_prompt": (_is_text, "a text that is not empty (`guidance_scale: 1` switches guidance off)"),
    "guidance_scale": (_is_number, "a number of at least 0"),
    "prompt_suffix": (lambda value: isinstance(value, str), 'a text that follows the prompt, or `""`'),
    "temperature": (_is_number, "a number of at least 0"),
    "top_k": (_is_top_k, "a whole number of at least 0 (0: all tokens)"),
    "top_p": (_is_top_p, "a number above 0 and at most 1"),
}
_WITHOUT_EFFECT: Mapping[str, tuple[tuple[Any, ...] | None, str]] = {
    # Values that ask for what happens anyway are accepted: clients send them. None accepts every value.
    "user": (None, ""),
    "safety_identifier": (None, ""),
    "response_format": (("b64_json",), "pictures come in the answer: `b64_json`"),
    "output_format": (("png",), "pictures are PNG files"),
    "output_compression": ((100,), "PNG files lose nothing: leave it out"),
    "background": (("auto", "opaque"), "pictures have no transparent parts"),
    "quality": (("auto", "standard"), "the model draws in one quality: leave it out"),
    "style": ((), "describe the style in the prompt"),
    "moderation": (("auto", "low"), "the server does not moderate"),
    "stream": ((False,), "a picture is complete when its last line is drawn: leave it out"),
    "partial_images": ((0,), "a picture is complete when its last line is drawn: leave it out"),
}
