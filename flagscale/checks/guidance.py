"""Guidance as a user asks for it: a scale and a negative prompt, in a batch, a line of it, or a request."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flagscale.errors import Violation, short

SCALE, NEGATIVE = "guidance_scale", "negative_prompt"
KEYS = (SCALE, NEGATIVE)
NOT_WITH_MEDIA = "guidance is not supported in chats with pictures, videos or audio"
LARGEST_SCALE = 1_000_000
"""Beyond any use; from about 1e37, logits combined in float32 are infinite, and all tokens are masked."""
NEUTRAL = {"repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
"""The penalties, which cannot be combined with guidance -> the value that means none."""


@dataclass(frozen=True)
class Guidance:
    """How strongly answers move away from the negative prompt, which is text or the ids of its tokens."""

    scale: float
    negative: str | tuple[int, ...]

    @property
    def is_ordinary(self) -> bool:
        """Whether this asks for no guidance at all: scale 1 is the prompt alone."""
        return self.scale == 1


def guidance_of(given: Mapping[str, Any]) -> Guidance | None:
    """Return the guidance that keys without violations ask for; None without them."""
    if given.get(SCALE) is None:
        return None
    negative = given[NEGATIVE]
    return Guidance(float(given[SCALE]), negative if isinstance(negative, str) else tuple(negative))


def guidance_violations(given: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield what is wrong with the two keys; null counts as not given."""
    yield from value_violations(given)
    for present, missing in ((SCALE, NEGATIVE), (NEGATIVE, SCALE)):
        if given.get(present) is not None and given.get(missing) is None:
            yield present, f"`{present}` needs `{missing}`"


def value_violations(given: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield which of the two keys has a wrong value, whether or not the other one is given."""
    scale, negative = given.get(SCALE), given.get(NEGATIVE)
    if scale is not None:
        yield from ((SCALE, what) for what in scale_violations(scale))
    if negative is not None and not _is_prompt(negative):
        what = "takes a text or a list of token ids that is not empty"
        yield NEGATIVE, f"`{NEGATIVE}` {what}, not {short(negative)}"
    elif isinstance(negative, str) and not negative.isascii() and _has_half_pair(negative):
        yield NEGATIVE, f"`{NEGATIVE}` contains half of a surrogate pair, which no tokenizer reads"


def scale_violations(scale: object) -> Iterator[str]:
    """Yield why a value is no scale; also for integers that no float can hold."""
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not 0 <= scale < math.inf:
        yield f"`{SCALE}` takes a number of at least 0, not {short(scale)}"
    elif scale > LARGEST_SCALE:
        yield f"`{SCALE}` takes at most {LARGEST_SCALE}, not {short(scale)}"


def _has_half_pair(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _is_prompt(value: object) -> bool:
    if isinstance(value, str):
        return bool(value)
    return isinstance(value, list) and bool(value) and all(type(one) is int and one >= 0 for one in value)


def keys_of_line(line: Mapping[str, Any], of_batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the two keys as they apply to one line of a batch: its own first, then those of the batch.

    A line without keys of its own is guided only if the batch has both.
    """
    own = {key: line[key] for key in KEYS if line.get(key) is not None}
    return {**of_batch, **own} if own or len(of_batch) == len(KEYS) else {}


def negative_chat(messages: Sequence[Mapping[str, Any]], negative: str) -> list[dict[str, Any]]:
    """Return the chat in which `negative` takes the place of what the user says last.

    All other messages stay, so that both chats differ only there. The chat passed `chat_violations`.
    """
    last = max(place for place, message in enumerate(messages) if message.get("role") == "user")
    return [
        {**message, "content": negative} if place == last else dict(message)
        for place, message in enumerate(messages)
    ]


def chat_violations(
    messages: Sequence[Mapping[str, Any]], guidance: Guidance, has_media: bool
) -> Iterator[Violation]:
    """Yield why a chat cannot be guided; `has_media`: whether it has pictures or the like."""
    if has_media:
        yield SCALE, NOT_WITH_MEDIA
    elif isinstance(guidance.negative, str) and not any(one.get("role") == "user" for one in messages):
        yield (
            NEGATIVE,
            f"`{NEGATIVE}` takes the place of the user's last message, and this chat has none: "
            "give the token ids of a whole prompt",
        )


def penalty_violations(
    sampling: Mapping[str, Any], defaults: Mapping[str, Any], remedy: str
) -> Iterator[Violation]:
    """Yield the penalties that apply to guided requests, which do not take any.

    `sampling` is what the user gives, `defaults` what the model's folder adds; `remedy` is the way to
    turn off the values of the folder, other than by a neutral value.
    """
    for name, neutral in NEUTRAL.items():
        own, default = sampling.get(name), defaults.get(name)
        if own is not None and own != neutral:
            yield (
                name,
                f"`{name}` {own} cannot be combined with `{SCALE}`: leave it out or set it to {neutral}",
            )
        elif own is None and default is not None and default != neutral:
            yield (
                name,
                f"the model's generation_config.json sets `{name}` {default}, which cannot be combined with "
                f"`{SCALE}`: set it to {neutral}, or {remedy}",
            )
