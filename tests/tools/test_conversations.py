"""Conversations in the forms of others become messages with parts; mistakes are reported in words."""

from typing import Any

import pytest

from energon_flagscale.conversations import conversation

IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def text(of: str) -> dict[str, str]:
    return {"type": "text", "text": of}


def llava(*turns: str, **others: Any) -> dict[str, Any]:
    sides = ("human", "gpt")
    return {
        "conversations": [{"from": sides[at % 2], "value": one} for at, one in enumerate(turns)],
        **others,
    }


def first_content(value: Any, **options: bool) -> list[dict[str, str]]:
    content: list[dict[str, str]] = conversation(value, **options).messages[0]["content"]
    return content


def test_the_conversations_of_llava() -> None:
    parsed = conversation(llava("<image>\nWhat?", "A cat.", "Sure?", "Yes.", id=7, image="a b/c.d.jpg"))
    assert parsed.images == ["a b/c.d.jpg"]
    assert parsed.messages == [
        {"role": "user", "content": [IMAGE, text("What?")]},
        {"role": "assistant", "content": [text("A cat.")]},
        {"role": "user", "content": [text("Sure?")]},
        {"role": "assistant", "content": [text("Yes.")]},
    ]


@pytest.mark.parametrize(
    ("given", "content"),
    [
        (
            "What?\n<image>",
            [IMAGE, text("What?")],
        ),  # LLaVA moves a message's only placeholder to its beginning
        ("Is <image> one?", [IMAGE, text("Is  one?")]),
        ("<image>", [IMAGE]),
        ("<image>What?", [IMAGE, text("What?")]),
    ],
)
def test_the_only_placeholder_of_a_message_goes_to_its_beginning(given: str, content: list[Any]) -> None:
    assert first_content(llava(given, "x", image="a.jpg")) == content


@pytest.mark.parametrize(
    ("given", "content"),
    [
        ("<image>\n<image> \n Differ?", [IMAGE, IMAGE, text("Differ?")]),
        (
            "A: <image>\nB: <image>\nDiffer?",
            [text("A: "), IMAGE, text("\nB: "), IMAGE, text("\nDiffer?")],
        ),
    ],
)
def test_several_placeholders_stay_where_they_are(given: str, content: list[Any]) -> None:
    assert first_content(llava(given, "x", image=["a.jpg", "b.jpg"])) == content
    assert first_content(llava(given, "x", images=["a.jpg", "b.jpg"])) == content


def test_a_placeholder_stays_where_it_is_in_other_forms_than_llavas() -> None:
    assert first_content(llava("What? <image>", "x", images=["a.jpg"])) == [text("What? "), IMAGE]


def test_llava_writes_image_for_videos() -> None:
    assert first_content(llava("What? <image>", "x", video="a.mp4")) == [VIDEO, text("What?")]
    with pytest.raises(ValueError, match=r"0 image\(s\), but 1 placeholder"):
        conversation(llava("<image><video>", "x", video="a.mp4"))


def test_messages_of_openai_bring_their_pictures_with_them() -> None:
    parts = [
        {"type": "text", "text": "Which?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}},
        {"type": "input_image", "image_url": "b.jpg"},
        {"type": "image", "image": "c.jpg"},
        {"type": "video", "video": "d.mp4"},
    ]
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}]},
    ]
    parsed = conversation({"messages": turns})
    assert parsed.images == [{"url": "data:image/png;base64,AA=="}, "b.jpg", "c.jpg"]
    assert parsed.videos == ["d.mp4"]
    assert parsed.messages[1]["content"] == [text("Which?"), IMAGE, IMAGE, IMAGE, VIDEO]


def test_parts_without_a_picture_stand_for_the_next_of_the_list() -> None:
    turns = [
        {"role": "user", "content": [{"type": "image"}, text("?")]},
        {"role": "assistant", "content": "x"},
    ]
    assert conversation({"messages": turns, "images": [{"bytes": b"x", "path": None}]}).images == [
        {"bytes": b"x", "path": None}
    ]


def test_a_system_message_beside_the_conversation_comes_first() -> None:
    parsed = conversation(llava("Hi", "Hello", system="Be brief.", image=None, images=[]))
    assert [message["role"] for message in parsed.messages] == ["system", "user", "assistant"]


def test_pairs_of_the_cauldron_show_the_pictures_first() -> None:
    texts = [
        {"user": "What?", "assistant": "A cat.", "source": "vqa"},
        {"user": "Sure?", "assistant": "Yes."},
    ]
    parsed = conversation({"images": [b"1", b"2"], "texts": texts})
    assert parsed.messages[0]["content"] == [IMAGE, IMAGE, text("What?")]
    assert len(parsed.messages) == 4


def test_pictures_that_no_text_mentions_are_added_on_request() -> None:
    value = llava("What?", "x", image="a.jpg", system="Be brief.")
    with pytest.raises(ValueError, match=r"1 image\(s\), but 0 .*--add-placeholders"):
        conversation(value)
    parsed = conversation(value, add_placeholders=True)
    assert parsed.messages[1]["content"] == [IMAGE, text("What?")]
    with pytest.raises(ValueError, match=r"2 image\(s\), but 1 placeholder\(s\) <image>$"):
        conversation(llava("<image>What?", "x", image=["a", "b"]), add_placeholders=True)


PART = {"type": "text", "text": "<image> is what LLaVA writes"}
USER, ANSWER = {"role": "user", "content": "?"}, {"role": "assistant", "content": "x"}


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (3, "not a JSON object but a number"),
        ([], "not a JSON object but a list"),
        ({}, r"no `messages` or `conversations` \(found: none\)"),
        ({"mesages": []}, r"no `messages` .*found: mesages"),
        ({"messages": [USER, ANSWER], "conversations": [USER]}, "both `messages` and `conversations`"),
        ({"messages": "hi"}, "`messages` is a string; it must be a list"),
        ({"messages": []}, "`messages` is empty"),
        ({"messages": ["hi"]}, "message 1 is a string, not an object"),
        ({"messages": [{"content": "hi"}]}, r"message 1 has no `role` \(found: content\)"),
        ({"messages": [{"role": 3, "content": "hi"}]}, "message 1 has no `role`"),
        ({"messages": [{"role": "asistant", "content": "hi"}]}, "`asistant`; did you mean `assistant`"),
        ({"messages": [{"role": "tool", "content": "hi"}]}, "message 1: unknown role `tool`; valid: "),
        ({"messages": [USER, {"role": "assistant"}]}, "message 2: its content is null"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, "message 2: its content is a number"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, r"message 2 \(assistant\) is empty"),
        ({"messages": [USER, {"role": "assistant", "content": []}]}, r"message 2 \(assistant\) is empty"),
        ({"messages": [USER, {"role": "assistant", "content": ["x"]}]}, "message 2: a part of type `x`"),
        ({"messages": [USER, {"role": "assistant", "content": [{"type": "imgae"}]}]}, "did you mean `image`"),
        (
            {"messages": [USER, {"role": "assistant", "content": [{"type": "text"}]}]},
            "text of a part is null",
        ),
        ({"messages": [{"role": "user", "content": [PART]}, ANSWER]}, "spells <image>; make it a part"),
        ({"messages": [USER]}, "last message is not an answer"),
        ({"messages": [ANSWER]}, "message 1 is of the assistant, but it is the turn of the user"),
        ({"messages": [USER, ANSWER, USER]}, "last message is not an answer"),
        ({"messages": [USER, USER, ANSWER]}, "message 2 is of the user, but it is the turn of the assistant"),
        ({"messages": [USER, ANSWER, {"role": "system", "content": "x"}]}, "message 3 is of the system"),
        ({"messages": [{"role": "system", "content": "x"}]}, "last message is not an answer"),
        (llava("?", "<image>", image="a.jpg"), r"message 2 \(assistant\) contains a picture"),
        (llava("<image><image>", "x", image="a.jpg"), r"1 image\(s\), but 2 placeholder\(s\) <image>"),
        (llava("<image>", "x"), r"0 image\(s\), but 1 placeholder"),
        (llava("<video>", "x", image="a.jpg"), r"1 image\(s\), but 0 placeholder"),
        (llava("<video>", "x"), r"0 video\(s\), but 1 placeholder"),
        (llava("<image>", "x", image="a.jpg", images=["b.jpg"]), "both `image` and `images`"),
        (llava("half \ud800", "x"), "message 1: half of a surrogate pair"),
        (
            {
                "messages": [{"role": "user", "content": [{"type": "image", "image": "a"}]}, ANSWER],
                "image": "b",
            },
            "images both in the messages and under `images`",
        ),
    ],
)
def test_mistakes_are_told_in_words(value: Any, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        conversation(value)
