"""The pictures and videos in the messages of a chat: URLs, or files of their author's."""

from __future__ import annotations

import base64
import mimetypes
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from flagscale.files import user_path

KINDS: Mapping[str, str] = {"image_url": "image", "video_url": "video"}
"""The type of a message's part, which is also the key of its URL, and what it is."""
_DATA = re.compile(r"data:[\w.+-]+/[\w.+-]+;base64,", re.IGNORECASE)
_LONGEST_NAME = 255
_SCHEME = re.compile(r"data:|[a-z][a-z0-9+.-]*://", re.IGNORECASE)

Message = Mapping[str, Any]
"""A role and a content: a text, or a list of parts."""


def file_part(kind: str, file: Path) -> dict[str, Any]:
    """Return the part of a message that holds a file, as a URL of its bytes; raises OSError."""
    guessed, _ = mimetypes.guess_type(file.name)
    media_type = guessed if guessed and guessed.startswith(f"{kind}/") else f"{kind}/unknown"
    text = base64.b64encode(file.read_bytes()).decode("ascii")
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{media_type};base64,{text}"}}


def file_violations(messages: Sequence[Message], folder: Path) -> Iterator[str]:
    """Yield what is wrong with the URLs and files in messages; paths are relative to `folder`.

    Parts as training data has them (`{"type": "image"}`) are reported, because a server does not know them.
    """
    for part in _parts(messages):
        for key, kind in KINDS.items():
            if part.get("type") == kind:
                yield f'a part of type `{kind}` needs {{"type": "{key}", "{key}": {{"url": ...}}}}'
    for _, _, part in _media(messages):
        kind, url = KINDS[part["type"]], _url(part)
        if not url:
            key = part["type"]
            yield f'a part of type `{key}` needs {{"type": "{key}", "{key}": {{"url": ...}}}}'
            continue
        file = _file(url, folder)
        if file is None:
            if not url.startswith(("http://", "https://")) and not _DATA.match(url):
                what = "needs the form data:TYPE/SUBTYPE;base64,..." if url[:5].lower() == "data:" else ""
                yield f"the {kind} {_short(url)} {what or 'is neither a file nor at a http(s) address'}"
        elif not _is_file(file):
            shown = url if len(url) <= _LONGEST_NAME else _short(url)
            yield f"the {kind} {shown}: no such file (paths are relative to {folder.absolute()})"


def with_files(messages: Sequence[Message], folder: Path) -> list[dict[str, Any]]:
    """Return messages in which the bytes of each file stand for its path; raises OSError."""
    found: list[dict[str, Any]] = [dict(message) for message in messages]
    for number, place, part in _media(messages):
        file = _file(_url(part), folder)
        if file is not None:
            content = [*found[number]["content"]]
            content[place] = {**part, **file_part(KINDS[part["type"]], file)}
            found[number]["content"] = content
    return found


def media_of(messages: Sequence[Message]) -> list[tuple[str, str]]:
    """Return "image" or "video", and the URL, of each part that has one."""
    return [(KINDS[part["type"]], _url(part)) for _, _, part in _media(messages)]


def shown(content: object) -> str:
    """Return a message's content as a line for people: `[image NAME]` stands for a picture."""
    if not isinstance(content, list):
        return str(content)
    return " ".join(_shown_part(part) for part in content)


def _shown_part(part: object) -> str:
    if not isinstance(part, Mapping):
        return str(part)
    if part.get("type") not in KINDS:
        return str(part.get("text", f"[{part.get('type')}]"))
    url = _url(part)
    return f"[{KINDS[part['type']]}{'' if url.startswith('data:') else f' {url}'}]"


def _media(messages: Sequence[Message]) -> Iterator[tuple[int, int, Mapping[str, Any]]]:
    """Yield the number of the message, the place in its content, and each part that has a URL."""
    for number, message in enumerate(messages):
        content = message.get("content")
        for place, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, Mapping) and part.get("type") in KINDS:
                yield number, place, part


def _parts(messages: Sequence[Message]) -> Iterator[Mapping[str, Any]]:
    for message in messages:
        content = message.get("content")
        yield from (
            part for part in (content if isinstance(content, list) else ()) if isinstance(part, Mapping)
        )


def _url(part: Mapping[str, Any]) -> str:
    """Return the URL of a part; "" if it has none."""
    given = part.get(part["type"])
    url = given.get("url") if isinstance(given, Mapping) else given
    return url if isinstance(url, str) else ""


def _file(url: str, folder: Path) -> Path | None:
    """Return the file that a URL or path names; None if it is an address, or holds the bytes themselves."""
    if not _SCHEME.match(url):
        return folder / user_path(url)
    parts = urlsplit(url)
    return folder / unquote(parts.netloc + parts.path) if parts.scheme.lower() == "file" else None


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that no file system takes: the bytes of a picture as text, say
        return False


def _short(url: str) -> str:
    return url if len(url) <= 60 else f"{url[:57]}..."
