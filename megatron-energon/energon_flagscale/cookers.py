"""From the files of a sample, in any of the usual formats, to messages with pictures and videos.

A sample's JSON has `messages` (OpenAI, ShareGPT) or `conversations` (LLaVA, ShareGPT), or is such a list. A
content is a list of parts, or a text in which `<image>` and `<video>` stand for the next file. A sample of a
picture and a `.txt` is a caption.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from megatron.energon import Sample, basic_sample_keys, edataclass, stateless

from energon_flagscale.formats import KINDS, PICTURES, ROLES, VIDEOS
from energon_flagscale.unusable import UnusableSample
from flagscale.errors import nearest

_LISTS = ("messages", "conversations")
_FRAME = re.compile(r"(.+)\.(\d+)\.[^.]+")
_PLACEHOLDER = re.compile(r"<(image|video)>")
_DIGITS = re.compile(r"(\d+)")


@edataclass
class Conversation(Sample):
    """Messages, whose parts have types text, image and video, and the files in the order of these parts."""

    messages: list[dict[str, Any]]
    pictures: list[tuple[str, bytes]]
    """Names and contents."""
    videos: list[list[tuple[str, bytes]]]
    """The frames of each video."""


@stateless
def cook(sample: dict[str, Any]) -> Conversation:
    """Return the conversation of a crude sample whose files were not decoded.

    Raises:
        UnusableSample: the format is unknown; placeholders and files are not equally many.
    """
    files = _Files(sample)
    messages = [_message(turn, number, files) for number, turn in enumerate(_turns(sample, files), 1)]
    files.check_all_used()
    return Conversation(
        **basic_sample_keys(sample),
        messages=messages,
        pictures=files.used["image"],
        videos=files.used["video"],
    )


class _Files:
    """The pictures and videos of a sample, which its parts take by name or one after the other."""

    def __init__(self, sample: Mapping[str, Any]) -> None:
        names = sorted(
            (name for name in sample if name.rpartition(".")[2].lower() in PICTURES),
            key=lambda name: [int(piece) if piece.isdigit() else piece for piece in _DIGITS.split(name)],
        )
        self.found: dict[str, dict[str, Any]] = {"image": {}, "video": {}}
        for name in names:
            frame = _FRAME.fullmatch(name)
            if frame and frame[1].startswith("video"):
                self.found["video"].setdefault(frame[1], []).append((name, sample[name]))
            else:
                self.found["image"][name] = (name, sample[name])
        self.left = {kind: dict(found) for kind, found in self.found.items()}
        self.used: dict[str, list[Any]] = {"image": [], "video": []}
        self.parts = {"image": 0, "video": 0}
        self.has_undecoded = any(name.rpartition(".")[2].lower() in VIDEOS for name in sample)

    def take(self, kind: str, reference: str | None) -> None:
        """Give the next part of a kind its file: the one it names if there is such a file, else the next."""
        self.parts[kind] += 1
        if kind == "image" and reference and reference.startswith("data:"):
            self.used[kind].append((f"{kind} {self.parts[kind]}", _inline(reference)))
            return
        own = self.found[kind].get((reference or "").rpartition("/")[2])
        if own is None and self.left[kind]:
            own = self.left[kind][next(iter(self.left[kind]))]
        if own is not None:
            self.used[kind].append(own)
            self.left[kind] = {name: file for name, file in self.left[kind].items() if file is not own}

    def check_all_used(self) -> None:
        for kind, parts in self.parts.items():
            if parts != len(self.used[kind]) or self.left[kind]:
                what = f"{parts} <{kind}> in its messages, but {len(self.found[kind])} {kind} files"
                if kind == "video" and self.has_undecoded:
                    what += "; videos are read as their frames, which tools/datasets/llava.py writes"
                raise UnusableSample(what)


def _turns(sample: Mapping[str, Any], files: _Files) -> list[Any]:
    """Return the messages of a sample as they are in its file."""
    if "json" not in sample:
        if "txt" in sample and files.found["image"]:
            pictures = [{"type": "image"}] * len(files.found["image"])
            caption = _text(sample["txt"], "its .txt").strip()
            return [{"role": "user", "content": pictures}, {"role": "assistant", "content": caption}]
        raise UnusableSample(f"no .json among its files: {', '.join(_names(sample))}")
    value = sample["json"]
    if isinstance(value, bytes):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise UnusableSample(f"its .json cannot be read: {error}") from None
    if isinstance(value, dict):
        own = [name for name in _LISTS if name in value]
        if not own:
            raise UnusableSample(
                f"its .json has neither `messages` nor `conversations`, but {', '.join(value)}"
            )
        value = value[own[0]]
    if not isinstance(value, list) or not value:
        raise UnusableSample("its .json holds no list of messages")
    return value


def _message(turn: Any, number: int, files: _Files) -> dict[str, Any]:
    where = f"message {number}"
    if not isinstance(turn, dict):
        raise UnusableSample(f"{where} is not an object with a role and a content")
    role = str(turn.get("role", turn.get("from")))
    if role not in ROLES:
        raise UnusableSample(f"{where} has the role {role!r}; {nearest(role, ROLES)}")
    content = turn.get("content", turn.get("value"))
    if isinstance(content, str):
        parts = [*_parts_of_text(content)]
    elif isinstance(content, list):
        parts = [_part(part, where) for part in content]
    else:
        raise UnusableSample(f"{where} has neither a text nor a list of parts")
    for part in parts:
        if part["type"] != "text":
            files.take(part["type"], part.pop("file", None))
    if all(part["type"] == "text" for part in parts):
        return {"role": ROLES[role], "content": "".join(part["text"] for part in parts)}
    return {"role": ROLES[role], "content": parts}


def _parts_of_text(text: str) -> Iterator[dict[str, Any]]:
    """Yield the parts of a text with placeholders; a template writes the line break after leading ones."""
    pieces = _PLACEHOLDER.split(text)  # text, kind, text, kind, ..., text
    is_leading = len(pieces) > 1
    for place, piece in enumerate(pieces):
        if place % 2:
            yield {"type": piece}
        elif is_leading and not piece.strip():
            continue
        elif piece:
            yield {"type": "text", "text": piece.removeprefix("\n") if is_leading and place else piece}
            is_leading = False


def _part(part: Any, where: str) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = KINDS.get(str(part.get("type"))) if isinstance(part, dict) else None
    if kind is None:
        shown = part.get("type") if isinstance(part, dict) else part
        raise UnusableSample(f"{where} has a part of type {shown!r}; {nearest(str(shown), KINDS)}")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise UnusableSample(f"{where} has a part of type text without a text")
        return {"type": "text", "text": part["text"]}
    named = [part[key] for key in (part["type"], "image", "url", "path") if part.get(key)]
    reference = named[0].get("url") if named and isinstance(named[0], dict) else (named or [None])[0]
    return {"type": kind, "file": reference if isinstance(reference, str) else None}


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
