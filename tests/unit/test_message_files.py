"""Pictures and videos in the messages of a chat: files are found and read, and wrong ones are named."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks.message_files import file_part, file_violations, shown, with_files
from flagscale.checks.prompts import read_prompts

PIXEL = b"not a picture, but nobody looks"


def chat(*parts: object) -> list[dict[str, Any]]:
    return [{"role": "system", "content": "Look."}, {"role": "user", "content": list(parts)}]


def picture(url: object) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_files_are_read_and_addresses_stay(tmp_path: Path) -> None:
    (tmp_path / "one picture.png").write_bytes(PIXEL)
    (tmp_path / "film.mp4").write_bytes(b"film")
    text = {"type": "text", "text": "What is it?"}
    away = picture("https://example.org/a.png")
    inside = picture("data:image/png;base64,QUJD")
    for url in ("one picture.png", str(tmp_path / "one picture.png"), f"file://{tmp_path}/one%20picture.png"):
        messages = chat(picture(url), away, inside, {"type": "video_url", "video_url": "film.mp4"}, text)
        assert list(file_violations(messages, tmp_path)) == []
        (system, user) = with_files(messages, tmp_path)
        assert system == messages[0]
        first, second, third, film, last = user["content"]
        assert (second, third, last) == (away, inside, text)
        begin, _, bytes64 = first["image_url"]["url"].partition(",")
        assert (begin, base64.b64decode(bytes64)) == ("data:image/png;base64", PIXEL)
        assert film["video_url"]["url"] == "data:video/mp4;base64,ZmlsbQ=="
        assert messages[1]["content"][0] == picture(url), "the given messages are unchanged"


def test_a_file_of_an_unknown_type_keeps_its_kind(tmp_path: Path) -> None:
    (tmp_path / "a.raw").write_bytes(b"")
    assert file_part("image", tmp_path / "a.raw")["image_url"]["url"] == "data:image/unknown;base64,"


@pytest.mark.parametrize(
    ("url", "reported"),
    [
        ("absent.png", "the image absent.png: no such file (paths are relative to"),
        (".", "no such file"),
        ("file://absent.png", "no such file"),
        ("ftp://example.org/a.png", "is neither a file nor at a http(s) address"),
        ("data:image/png,abc", "needs the form data:TYPE/SUBTYPE;base64,"),
        ("", "needs {"),
        (None, "needs {"),
        (7, "needs {"),
    ],
)
def test_what_is_wrong_with_a_url(url: object, reported: str, tmp_path: Path) -> None:
    (what,) = file_violations(chat(picture(url)), tmp_path)
    assert reported in what


def test_parts_of_training_data_are_reported(tmp_path: Path) -> None:
    (what,) = file_violations(chat({"type": "image", "image": "a.png"}), tmp_path)
    assert what == 'a part of type `image` needs {"type": "image_url", "image_url": {"url": ...}}'


def test_a_prompts_file_names_each_missing_file_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "there.png").write_bytes(PIXEL)
    lines = [chat(picture("there.png")), chat(picture("a.png"), picture("b.png")), chat(picture("c.png"))]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps({"messages": line}) for line in lines))
    prompts, wrong = read_prompts(file)
    assert len(prompts) == 3
    assert [line.partition(": no such file")[0] for line in wrong] == [
        f"{file}:2: the image a.png",
        f"{file}:2: the image b.png",
        f"{file}:3: the image c.png",
    ]
    assert prompts[1].shown == "system: Look.\nuser: [image a.png] [image b.png]"


def test_a_content_as_a_line_hides_bytes() -> None:
    content = [picture("data:image/png;base64,QUJD"), {"type": "text", "text": "What?"}, {"type": "other"}, 3]
    assert shown(content) == "[image] What? [other] 3"
    assert shown("What?") == "What?"
