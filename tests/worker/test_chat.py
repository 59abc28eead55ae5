"""Conversations as text: the parts of messages, the answers, begin tokens, and how vLLM sees the template."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks.messages import ConversationError
from flagscale.errors import UserError
from flagscale_testing.pictures import IMAGE, VIDEO, write_tokenizer
from megatron.flagscale.chat.conversation import ChatTemplate
from megatron.flagscale.chat.templates import named_template, rendered, template_of

TRIMS = """{{- bos_token -}}{% for m in messages %}
{{- '<' + m.role + '>' + m.content | trim + '<end>' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"""
"""As Llama 3's: contents are trimmed, and the begin token is written."""
DEFAULTS = """{%- if messages[0]['role'] == 'system' -%}{{ '[S]' + messages[0]['content'] + '[/S]' }}
{%- set loop_messages = messages[1:] -%}{%- else -%}{{ '[S]Be good.[/S]' }}
{%- set loop_messages = messages -%}{%- endif -%}{%- for m in loop_messages -%}
{%- if m['role'] == 'user' -%}{{ '[U]' + m['content'] + '[/U]' }}
{%- else -%}{{ ' ' + m['content'].strip() + ' </s>' }}{%- endif -%}{%- endfor -%}"""
"""As Llama 2's: a default system message, and no prompt for an answer."""
THINKS = """{%- for m in messages -%}{{ '<|im_start|>' + m.role + '\\n' }}
{%- if m.role == 'assistant' -%}{%- set answer = m.content.split('</think>')[-1].lstrip('\\n') -%}
{%- if loop.last -%}{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}{{ answer }}{%- else -%}{{ m.content }}
{%- endif -%}{{ '<|im_end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""
"""As Qwen 3's: thoughts are dropped, and the last answer begins with empty ones."""
STRICT = """{%- for m in messages -%}{%- if (m.role == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('roles must alternate') -}}{%- endif -%}
{{- ('Q: ' if m.role == 'user' else 'A: ') + m.content + '\\n' -}}{%- endfor -%}
{%- if add_generation_prompt -%}{{- 'A:' -}}{%- endif -%}"""
"""As Mistral's: other roles and orders are refused; turns end with a line break alone."""
OWN_PARTS = """{% for m in messages %}{{ m.role + ': ' }}{% if m.content is string %}{{ m.content }}{% else %}
{%- for part in m.content | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}
{%- for part in m.content | selectattr('type', 'equalto', 'text') %}{{ part.text }}{% endfor %}{% endif %}
{{- '; ' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"""
"""It writes placeholders itself, before all text."""
ONLY_PARTS = """{% for m in messages %}{{ m['role'] + ' ' }}
{%- for part in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}
{%- for part in m['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' + part['text'] }}{% endfor %}
{{- '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant\\n' }}{% endif %}"""
"""As the published LLaVA-OneVision's: besides, it leaves out a content that is a text and not a list."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("tokenizers")
    return {begins: write_tokenizer(folder / str(begins), begins=begins) for begins in (False, True)}


def opened(folders: dict[bool, Path], template: str | None = None, begins: bool = False) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folders[begins])
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def chat(tokenizer: Any, source: str | None = None) -> ChatTemplate:
    return ChatTemplate(template_of(tokenizer, source, IMAGE, VIDEO), tokenizer)


def turns(*contents: Any) -> list[dict[str, Any]]:
    return [
        {"role": ("user", "assistant")[number % 2], "content": content}
        for number, content in enumerate(contents)
    ]


def answers(template: ChatTemplate, messages: list[dict[str, Any]]) -> tuple[str, list[str]]:
    found = template.conversation(messages)
    return found.text, [found.text[first:end] for first, end in found.answers]


PICTURE, FILM = {"type": "image"}, {"type": "video"}


def words(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([PICTURE, words("What?")], "<image>\nWhat?"),
        ([PICTURE, FILM, words("What?")], "<image>\n<video>\nWhat?"),
        ([words("What is "), PICTURE, words(" and "), PICTURE], "What is <image> and <image>"),
        ([PICTURE], "<image>\n"),
        ([words("plain")], "plain"),
        ("plain <text>", "plain <text>"),
        ("", ""),
        ([], ""),
    ],
)
def test_parts_become_placeholders_in_their_order(folders: Any, content: Any, text: str) -> None:
    template = chat(opened(folders))
    found, spans = answers(template, turns(content, "yes"))
    assert found == f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    assert spans == ["yes<|im_end|>"]


def test_unknown_part_is_refused_by_name(folders: Any) -> None:
    tokenizer = opened(folders)
    text = template_of(tokenizer, None, IMAGE, VIDEO)
    with pytest.raises(ConversationError, match="a part of type audio"):
        ChatTemplate(text, tokenizer).conversation(turns([{"type": "audio"}], "yes"))


CASES = {
    "chatml": (None, ["a<|im_end|>", " b <|im_end|>"]),
    "vicuna": ("vicuna", [" a<|im_end|>", "  b <|im_end|>"]),
    "trims": (TRIMS, ["a<end>", "b<end>"]),
    "defaults": (DEFAULTS, [" a </s>", " b </s>"]),
    "thinks": (THINKS, ["a<|im_end|>", "<think>\n\n</think>\n\n b <|im_end|>"]),
    "strict": (STRICT, [" a\n", "  b \n"]),
    "own parts": (OWN_PARTS, [" a;", "  b ;"]),
    "only parts": (ONLY_PARTS, ["a<|im_end|>", " b <|im_end|>"]),
}


@pytest.mark.parametrize("name", CASES)
def test_answers_are_what_follows_the_prompt_up_to_the_end_of_the_turn(folders: Any, name: str) -> None:
    source, expected = CASES[name]
    begins = name == "trims"
    named = source if source == "vicuna" else None
    template = chat(opened(folders, None if named else source, begins), named)
    found, spans = answers(template, turns([PICTURE, words("Q")], "a", "R", " b "))
    assert spans == expected
    assert found.count(IMAGE) == 1
    assert found == rendered(
        template.text, opened(folders, begins=begins), turns([PICTURE, words("Q")], "a", "R", " b ")
    )


def test_contents_that_a_template_changes_are_found_by_rendering_up_to_them(folders: Any) -> None:
    template = chat(opened(folders, THINKS))
    _, spans = answers(template, turns("Q", "<think>x</think>\n\nyes"))
    assert spans == ["<think>\n\n</think>\n\nyes<|im_end|>"]


def test_texts_that_a_template_drops_from_earlier_answers_are_not_learnt(folders: Any) -> None:
    messages = turns("Q", "<think>x</think>yes", "R", "<think>y</think>no")
    found = ["yes<|im_end|>", "<think>\n\n</think>\n\nno<|im_end|>"]
    assert answers(chat(opened(folders, THINKS)), messages)[1] == found


def test_refuses_a_template_that_writes_answers_in_another_order(folders: Any) -> None:
    backwards = "{% for m in messages | reverse %}{{ m.role + m.content }}{% endfor %}"
    with pytest.raises(ConversationError, match="the answer in message 2 cannot be found"):
        chat(opened(folders, backwards)).conversation(turns("Q", "a", "R", "b"))


def test_answers_without_content_or_with_the_text_of_the_prompt(folders: Any) -> None:
    template = chat(opened(folders))
    assert answers(template, turns("Q", ""))[1] == ["<|im_end|>"]
    prompt = "<|im_start|>assistant\n"
    assert answers(template, turns(prompt, prompt, "R", "b"))[1] == [f"{prompt}<|im_end|>", "b<|im_end|>"]


def test_pictures_in_answers(folders: Any) -> None:
    messages = turns("Q", [words("so: "), PICTURE], "R", [PICTURE, words("so")], "S", [words("b")])
    found = ["so: <image><|im_end|>", "<image>\nso<|im_end|>", "b<|im_end|>"]
    assert answers(chat(opened(folders)), messages)[1] == found


def test_several_answers_in_a_row_and_one_at_the_beginning(folders: Any) -> None:
    messages = [{"role": "assistant", "content": text} for text in ("a", "b")]
    assert answers(chat(opened(folders)), messages)[1] == ["a<|im_end|>", "b<|im_end|>"]


def test_messages_after_the_last_answer_and_without_any(folders: Any) -> None:
    template = chat(opened(folders))
    assert answers(template, turns("Q", "a", "R"))[1] == ["a<|im_end|>"]
    assert answers(template, turns("Q"))[1] == []


def test_refusal_of_the_template_is_reported(folders: Any) -> None:
    with pytest.raises(ConversationError, match="roles must alternate"):
        chat(opened(folders, STRICT)).conversation(turns("Q", "a")[::-1])


def test_system_message_of_vicuna_replaces_its_own(folders: Any) -> None:
    messages = [{"role": "system", "content": "Be brief."}, *turns("Q", "a", "R", "b")]
    found, spans = answers(chat(opened(folders), "vicuna"), messages)
    assert found == "Be brief. USER: Q ASSISTANT: a<|im_end|>USER: R ASSISTANT: b<|im_end|>"
    assert spans == [" a<|im_end|>", " b<|im_end|>"]


@pytest.mark.parametrize("source", [None, "vicuna"])
def test_begin_token_is_written_once(folders: Any, source: str | None) -> None:
    tokenizer = opened(folders, begins=True)
    text = chat(tokenizer, source).conversation(turns("Q", "a")).text
    assert text.startswith(tokenizer.bos_token)
    assert text.count(tokenizer.bos_token) == 1
    assert chat(opened(folders, TRIMS, begins=True)).conversation(turns("Q", "a")).text.count("<|end") == 1


def test_template_from_a_file(folders: Any, tmp_path: Path) -> None:
    file = tmp_path / "own.jinja"
    file.write_text(STRICT, "utf-8")
    assert answers(chat(opened(folders), str(file)), turns("Q", "a"))[0] == "Q: Q\nA: a\n"


def test_mistakes_are_reported(folders: Any, tmp_path: Path) -> None:
    tokenizer = opened(folders)
    with pytest.raises(
        UserError, match=r"`chat_template: vicunna` is neither a file nor one of chatml, vicuna"
    ):
        template_of(tokenizer, "vicunna", IMAGE, VIDEO)
    with pytest.raises(UserError, match="cannot be used: Unexpected end of template"):
        template_of(opened(folders, "{% for m in messages %}"), None, IMAGE, VIDEO)
    with pytest.raises(UserError, match="does not write a message's text, or '<image>' for a picture"):
        template_of(opened(folders, "always the same"), None, IMAGE, VIDEO)
    damaged = tmp_path / "damaged.jinja"
    damaged.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        template_of(tokenizer, str(damaged), IMAGE, VIDEO)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match=r"has no chat template\n.*one of chatml, vicuna"):
        template_of(tokenizer, None, IMAGE, VIDEO)
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="eos_token, which is not set"):
        template_of(tokenizer, "vicuna", IMAGE, VIDEO)
    assert named_template("chatml")


def test_the_template_of_a_processor_is_the_folders_own(tmp_path: Path) -> None:
    """transformers' tokenizers and its processors read different files of published folders."""
    from flagscale.checks.tokenizer import has_chat_template

    folder = write_tokenizer(tmp_path / "model")
    (folder / "chat_template.jinja").unlink()
    assert not has_chat_template(folder)
    path = folder / "chat_template.json"
    path.write_text(json.dumps({"chat_template": ONLY_PARTS}))
    assert has_chat_template(folder)
    tokenizer = opened({False: folder})
    for tokenizer.chat_template in (None, named_template("chatml")):
        text = template_of(tokenizer, None, IMAGE, VIDEO)
        assert (
            rendered(text, tokenizer, turns([PICTURE, {"type": "text", "text": "a"}]))
            == "user <image>\na<|im_end|>"
        )
    path.write_text("[]")
    with pytest.raises(UserError, match=r"chat_template\.json: is not JSON of the form"):
        template_of(tokenizer, None, IMAGE, VIDEO)


def test_templates_from_which_a_model_learns_other_answers_are_reported(folders: Any) -> None:
    unended = "{% for m in messages %}{{ m.role + ': ' + m.content + ' ' }}{% endfor %}"
    unended += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    assert [*chat(opened(folders, unended)).notices()] == [
        "the chat template writes no mark after an answer, so the model does not learn to end one"
    ]
    assert [*chat(opened(folders, ONLY_PARTS)).notices()] == [
        "the chat template asks a served model with '\\n', but trains it with ' \\n'"
    ]
    for good in (TRIMS, DEFAULTS, named_template("chatml"), named_template("vicuna")):
        assert [*chat(opened(folders, good)).notices()] == []
