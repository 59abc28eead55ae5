"""Samples in the usual formats become the same messages; what is wrong with one is said in words."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from energon_flagscale.cookers import cook
from energon_flagscale.unusable import UnusableSample

A, B, C = b"first", b"second", b"third"
PICTURE, FILM = {"type": "image"}, {"type": "video"}


def words(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def crude(value: Any, **files: bytes) -> dict[str, Any]:
    keys = {"__key__": "one", "__restore_key__": (), "__subflavors__": {}, "__sources__": ()}
    found = {} if value is None else {"json": json.dumps(value).encode()}
    return {**keys, **found, **{name.replace("__", "."): data for name, data in files.items()}}


def cooked(value: Any, **files: bytes) -> tuple[list[Any], list[bytes], list[list[bytes]]]:
    found = cook(crude(value, **files))
    assert found.__key__ == "one"
    pictures = [data for _, data in found.pictures]
    videos = [[data for _, data in frames] for frames in found.videos]
    return [message["content"] for message in found.messages], pictures, videos


ASKED = [[PICTURE, words("What?")], "a cat"]
OURS = {
    "messages": [
        {"role": "user", "content": [{"type": "image"}, words("What?")]},
        {"role": "assistant", "content": [words("a cat")]},
    ]
}
FORMS: dict[str, Any] = {
    "ours": OURS,
    "llava": {
        "id": 7,
        "image": "coco/7.jpg",
        "conversations": [
            {"from": "human", "value": "<image>\nWhat?"},
            {"from": "gpt", "value": "a cat"},
        ],
    },
    "sharegpt": {
        "messages": [
            {"role": "user", "content": "<image>What?"},
            {"role": "assistant", "content": "a cat"},
        ],
        "images": ["7.jpg"],
    },
    "openai": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "7.jpg"}}, words("What?")],
            },
            {"role": "assistant", "content": "a cat"},
        ]
    },
    "responses": {
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "input_image", "image_url": "7.jpg"},
                    {"type": "input_text", "text": "What?"},
                ],
            },
            {"role": "assistant", "content": "a cat"},
        ]
    },
    "list": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a cat"}],
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_becomes_the_same_messages(name: str) -> None:
    found = cook(crude(FORMS[name], jpg=A))
    assert [message["role"] for message in found.messages] == ["user", "assistant"]
    assert cooked(FORMS[name], jpg=A) == (ASKED, [A], [])


@pytest.mark.parametrize(
    ("text", "content", "pictures"),
    [
        ("plain", "plain", 0),
        ("<image>\n<image>\nWhat?", [PICTURE, PICTURE, words("What?")], 2),
        (" <image> \nWhat?", [PICTURE, words(" \nWhat?")], 1),
        ("What?\n<image>", [words("What?\n"), PICTURE], 1),
        ("Is <image> like <image>?", [words("Is "), PICTURE, words(" like "), PICTURE, words("?")], 2),
        ("<image>", [PICTURE], 1),
        ("<image>\n\nWhat?", [PICTURE, words("\nWhat?")], 1),
    ],
)
def test_placeholders_in_texts(text: str, content: Any, pictures: int) -> None:
    files = {f"image{number}__png": A for number in range(pictures)}
    asked = [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}]
    assert cooked(asked, **files)[0] == [content, "yes"]


def test_pictures_are_numbered_as_people_count() -> None:
    value = [{"role": "user", "content": [PICTURE, PICTURE, PICTURE]}]
    assert cooked(value, image10__png=C, image2__png=B, image0__jpg=A)[1] == [A, B, C]


def test_parts_name_their_files_or_bring_them() -> None:
    inline = "data:image/png;base64," + base64.b64encode(C).decode()
    urls = ["https://example.org/b.png", inline, "a.png"]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    value = {"messages": [{"role": "user", "content": parts}]}
    assert cooked(value, a__png=A, b__png=B)[1] == [B, C, A]


def test_videos_are_their_frames() -> None:
    value = [{"role": "user", "content": [FILM, PICTURE, FILM]}]
    frames = {"video0__010__jpg": B, "video0__002__jpg": A, "video1__000__jpg": C}
    assert cooked(value, image0__png=A, **frames)[1:] == ([A], [[A, B], [C]])


def test_captions_are_answers() -> None:
    found = cook(crude(None, jpg=A, txt=b"a red bus\n"))
    assert found.messages == [
        {"role": "user", "content": [PICTURE]},
        {"role": "assistant", "content": "a red bus"},
    ]


USER = {"role": "user", "content": "Q"}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no .json among its files: jpg"),
        ({"question": "What?"}, "its .json has neither `messages` nor `conversations`, but question"),
        ({"messages": []}, "its .json holds no list of messages"),
        (7, "its .json holds no list of messages"),
        ([7], "message 1 is not an object with a role and a content"),
        (
            [USER, {"role": "asistant", "content": "a"}],
            "message 2 has the role 'asistant'; did you mean `assistant`",
        ),
        ([{"content": "a"}], "message 1 has the role 'None'"),
        ([{"role": "user"}], "message 1 has neither a text nor a list of parts"),
        ([{"role": "user", "content": [{"type": "imgae"}]}], "part of type 'imgae'; did you mean `image`"),
        ([{"role": "user", "content": [7]}], "message 1 has a part of type 7"),
        ([{"role": "user", "content": [{"type": "text"}]}], "a part of type text without a text"),
        ([USER], "0 <image> in its messages, but 1 image files"),
        ([{"role": "user", "content": "<image><image>"}], "2 <image> in its messages, but 1 image files"),
        ([{"role": "user", "content": "<image><video>"}], "1 <video> in its messages, but 0 video files"),
        (
            [{"role": "user", "content": [{"type": "image", "image": "data:image/png;base64,?"}]}],
            "a picture in its .json is not base64",
        ),
    ],
)
def test_mistakes_are_named(value: Any, message: str) -> None:
    with pytest.raises(UnusableSample) as raised:
        cook(crude(value, jpg=A))
    assert message in str(raised.value)


def test_videos_that_were_not_decoded_are_named() -> None:
    with pytest.raises(UnusableSample, match=r"0 video files; videos are read as their frames, which tools/"):
        cook(crude([{"role": "user", "content": "<video>"}], mp4=A))


def test_files_that_cannot_be_read() -> None:
    with pytest.raises(UnusableSample, match=r"its \.json cannot be read: "):
        cook(crude(None, jpg=A) | {"json": b"{"})
    with pytest.raises(UnusableSample, match=r"its \.json cannot be read: "):
        cook(crude(None, jpg=A) | {"json": b"\xff\xfe\xff"})
    with pytest.raises(UnusableSample, match=r"its \.txt is not UTF-8"):
        cook(crude(None, jpg=A, txt=b"\xff"))
