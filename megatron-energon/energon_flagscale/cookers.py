"""From the files of a sample, in any of the usual formats, to messages with pictures and videos.

A sample's JSON is a conversation (see conversations.py), or the list of its messages. A sample of a picture
and a `.txt` is a caption.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from megatron.energon import Sample, basic_sample_keys, edataclass, stateless

from energon_flagscale.conversations import IMAGE, TEXT, VIDEO, Message, conversation
from energon_flagscale.formats import PICTURES, VIDEOS
from energon_flagscale.unusable import UnusableSample

_FRAME = re.compile(r"(.+)\.(\d+)\.[^.]+")
_DIGITS = re.compile(r"(\d+)")


@edataclass
class ConversationSample(Sample):
    """Messages, whose parts have types text, image and video, and the files in the order of these parts."""

    messages: list[dict[str, Any]]
    pictures: list[tuple[str, bytes]]
    """Names and contents."""
    videos: list[list[tuple[str, bytes]]]
    """The frames of each video."""


@stateless
def cook(sample: dict[str, Any]) -> ConversationSample:
    """Return the conversation of a crude sample whose files were not decoded.

    Raises:
        UnusableSample: its messages are not in a known form; placeholders and files are not equally many.
    """
    files = _files(sample)
    try:
        parsed = conversation(_value(sample, files), files={kind: [*found] for kind, found in files.items()})
    except ValueError as error:
        raise UnusableSample(f"{error}{_undecoded(sample) if f'<{VIDEO}>' in str(error) else ''}") from None
    key = str(sample["__key__"])
    return ConversationSample(
        **basic_sample_keys(sample),
        messages=[_joined(message) for message in parsed.messages],
        pictures=_taken(IMAGE, parsed.images, files[IMAGE], key),
        videos=_taken(VIDEO, parsed.videos, files[VIDEO], key),
    )


def _files(sample: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the pictures and videos of a sample by name, in the order in which people count."""
    names = sorted(
        (name for name in sample if name.rpartition(".")[2].lower() in PICTURES),
        key=lambda name: [int(piece) if piece.isdigit() else piece for piece in _DIGITS.split(name)],
    )
    found: dict[str, dict[str, Any]] = {IMAGE: {}, VIDEO: {}}
    for name in names:
        frame = _FRAME.fullmatch(name)
        if frame and frame[1].startswith("video"):
            found[VIDEO].setdefault(frame[1], []).append((name, sample[name]))
        else:
            found[IMAGE][name] = (name, sample[name])
    return found


def _value(sample: Mapping[str, Any], files: Mapping[str, Any]) -> Any:
    """Return the content of a sample's JSON, or the conversation that a caption stands for."""
    if "json" not in sample:
        if "txt" in sample and files[IMAGE]:
            pictures = [{"type": IMAGE}] * len(files[IMAGE])
            caption = _text(sample["txt"], "its .txt").strip()
            return _messages({"user": pictures, "assistant": caption})
        raise UnusableSample(f"no .json among its files: {', '.join(_names(sample))}")
    value = sample["json"]
    if isinstance(value, bytes):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UnusableSample(f"its .json cannot be read: {error}") from None
    return {"messages": value} if isinstance(value, list) else value


def _messages(contents: Mapping[str, Any]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in contents.items()]}


def _joined(message: Message) -> Message:
    """Return a message without pictures with its text as such, which every template can read."""
    if any(part["type"] != TEXT for part in message["content"]):
        return message
    return {**message, "content": "".join(part[TEXT] for part in message["content"])}


def _taken(kind: str, references: Sequence[Any], found: Mapping[str, Any], key: str) -> list[Any]:
    """Return the files that references name, with or without the sample's key; in order if none is named."""
    texts = [_address(reference) for reference in references]
    asked = [text for text in texts if not text.startswith("data:")]
    named = [_name_in(text, found, key) for text in asked]
    if not any(named) and len(named) == len(found):
        named = [*found]
    if {*named} != {*found}:
        what = f"its messages show {', '.join(asked) or 'none of its files'}"
        raise UnusableSample(f"{what}, but its {kind} files are {', '.join(found) or 'missing'}")
    files = iter(named)
    return [
        (f"{kind} {number}", _inline(text)) if text.startswith("data:") else found[next(files)]
        for number, text in enumerate(texts, 1)
    ]


def _address(reference: Any) -> str:
    """Return the path, name or address that a reference holds."""
    if isinstance(reference, dict):
        reference = next((reference[key] for key in ("path", "url") if reference.get(key)), "")
    return str(reference)


def _name_in(text: str, found: Mapping[str, Any], key: str) -> str:
    """Return the name of the file that a reference means; "" if there is none."""
    name = text.rpartition("/")[2]
    without_key = name.removeprefix(f"{key.rpartition('/')[2]}.")
    return next((one for one in (name, without_key) if one in found), "")


def _undecoded(sample: Mapping[str, Any]) -> str:
    if not any(name.rpartition(".")[2].lower() in VIDEOS for name in sample):
        return ""
    return "; videos are read as their frames, which tools/datasets/llava.py writes"


def _inline(reference: str) -> bytes:
    try:
        return base64.b64decode(reference.partition(",")[2], validate=True)
    except binascii.Error as error:
        raise UnusableSample(f"a picture in its .json is not base64: {error}") from None


def _text(value: Any, where: str) -> str:
    try:
        return value if isinstance(value, str) else value.decode()
    except UnicodeDecodeError as error:
        raise UnusableSample(f"{where} is not UTF-8: {error}") from None


def _names(sample: Mapping[str, Any]) -> list[str]:
    return [name for name in sample if not name.startswith("__")] or ["none"]
