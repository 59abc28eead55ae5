"""Samples in the usual formats become the same messages; what is wrong with one is said in words."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from energon_flagscale.conversations import conversation
from energon_flagscale.cookers import cook
from energon_flagscale.unusable import UnusableSample

A, B, C = b"first", b"second", b"third"
ANSWER = {"role": "assistant", "content": "a cat"}
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
        (" <image> \nWhat?", [PICTURE, words("What?")], 1),
        ("What?\n<image>", [PICTURE, words("What?")], 1),
        ("Is <image> like <image>?", [words("Is "), PICTURE, words(" like "), PICTURE, words("?")], 2),
        ("<image>", [PICTURE], 1),
    ],
)
def test_placeholders_in_texts_of_llava(text: str, content: Any, pictures: int) -> None:
    files = {f"image{number}__png": A for number in range(pictures)}
    asked = [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}]
    assert cooked(asked, **files)[0] == [content, "yes"]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ([{"from": "human", "value": "What?\n<image>"}, {"from": "gpt", "value": "a cat"}], "image"),
        ({"conversations": [{"from": "human", "value": "Is <image> one?"}, ANSWER]}, "image"),
        ({"conversations": [{"from": "human", "value": "Is <image> one?"}, ANSWER]}, "images"),
        (
            {"system": "Be brief.", "messages": [{"role": "user", "content": "<image>  What? "}, ANSWER]},
            "images",
        ),
        ({"texts": [{"user": "What?", "assistant": "a cat"}]}, "images"),
    ],
)
def test_a_conversation_does_not_depend_on_who_wrote_the_shard(value: Any, named: str) -> None:
    record = ({"messages": value} if isinstance(value, list) else value) | {named: ["7.jpg"]}
    ours = crude({"messages": conversation(record).messages}, image0__jpg=A)
    others = crude(value if named == "image" else record, jpg=A)
    assert cook(others).messages == cook(ours).messages


def test_pictures_are_numbered_as_people_count() -> None:
    value = [{"role": "user", "content": [PICTURE, PICTURE, PICTURE]}, ANSWER]
    assert cooked(value, image10__png=C, image2__png=B, image0__jpg=A)[1] == [A, B, C]


def test_parts_name_their_files_or_bring_them() -> None:
    inline = "data:image/png;base64," + base64.b64encode(C).decode()
    urls = ["https://example.org/b.png", inline, "a.png"]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    value = {"messages": [{"role": "user", "content": parts}, ANSWER]}
    assert cooked(value, a__png=A, b__png=B)[1] == [B, C, A]


@pytest.mark.parametrize("names", [["b.png", "a.png"], ["x/one.b.png", "x/one.a.png"]])
def test_pictures_are_found_by_their_names_with_and_without_the_key(names: list[str]) -> None:
    asked = [{"from": "human", "value": "<image><image>?"}, {"from": "gpt", "value": "no"}]
    assert cooked({"conversations": asked, "image": names}, a__png=A, b__png=B)[1] == [B, A]
    assert cooked({"messages": asked, "images": names}, a__png=A, b__png=B)[1] == [B, A]


def test_pictures_whose_names_changed_come_in_order() -> None:
    asked = [{"from": "human", "value": "<image><image>?"}, {"from": "gpt", "value": "no"}]
    value = {"conversations": asked, "image": ["coco/9.jpg", "coco/7.jpg"]}
    assert cooked(value, image0__jpg=A, image1__jpg=B)[1] == [A, B]


def test_videos_are_their_frames() -> None:
    value = [{"role": "user", "content": [FILM, PICTURE, FILM]}, ANSWER]
    frames = {"video0__010__jpg": B, "video0__002__jpg": A, "video1__000__jpg": C}
    assert cooked(value, image0__png=A, **frames)[1:] == ([A], [[A, B], [C]])


def test_captions_are_answers() -> None:
    found = cook(crude(None, jpg=A, txt=b"a red bus\n"))
    assert found.messages == [
        {"role": "user", "content": [PICTURE]},
        {"role": "assistant", "content": "a red bus"},
    ]


USER, SEEN = {"role": "user", "content": "Q"}, {"role": "user", "content": "<image>Q"}


def showing(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": [*parts]}, ANSWER]


def named(name: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": name}}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "no .json among its files: jpg"),
        ({"question": "What?"}, "no `messages` or `conversations` (found: question)"),
        (7, "not a JSON object but a number"),
        ([USER, {"role": "asistant", "content": "a"}], "`asistant`; did you mean `assistant`"),
        ([SEEN, {"role": "assistant", "content": ""}], "message 2 (assistant) is empty"),
        ([SEEN, USER, ANSWER], "message 2 is of the user, but it is the turn of the assistant"),
        ([USER, {"role": "assistant", "content": [PICTURE]}], "message 2 (assistant) contains a picture"),
        (showing(words("half \ud800")), "message 1: half of a surrogate pair"),
        (showing(words("<image> Q")), "message 1: the text of a part spells <image>"),
        ([USER, ANSWER], "1 image(s), but 0 placeholder(s) <image>"),
        (showing(PICTURE, PICTURE), "1 image(s), but 2 placeholder(s) <image>"),
        (showing(PICTURE, FILM), "0 video(s), but 1 placeholder(s) <video>"),
        (showing(named("a.jpg"), named("b.jpg")), "show a.jpg, b.jpg, but its image files are jpg"),
        (showing(named("one.jpg"), named("b.jpg")), "show one.jpg, b.jpg, but its image files are jpg"),
        (showing({"type": "image", "image": "data:image/png;base64,AAAA"}), "show none of its files, but"),
        (
            showing(named("jpg"), {"type": "image", "image": "data:image/png;base64,?"}),
            "a picture in its .json is not base64",
        ),
    ],
)
def test_mistakes_are_named(value: Any, message: str) -> None:
    with pytest.raises(UnusableSample) as raised:
        cook(crude(value, jpg=A))
    assert message in str(raised.value)


def test_videos_that_were_not_decoded_are_named() -> None:
    with pytest.raises(
        UnusableSample, match=r"0 video\(s\), .*; videos are read as their frames, which tools/"
    ):
        cook(crude([{"role": "user", "content": "<video>"}, ANSWER], mp4=A))


def test_files_that_cannot_be_read() -> None:
    with pytest.raises(UnusableSample, match=r"its \.json cannot be read: "):
        cook(crude(None, jpg=A) | {"json": b"{"})
    with pytest.raises(UnusableSample, match=r"its \.json cannot be read: "):
        cook(crude(None, jpg=A) | {"json": b"\xff\xfe\xff"})
    with pytest.raises(UnusableSample, match=r"its \.txt is not UTF-8"):
        cook(crude(None, jpg=A, txt=b"\xff"))
