"""Templates of published models: the ids are those of transformers, and only answers are learnt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flagscale.checks.messages import ConversationError
from flagscale_testing.chat_templates import published_templates, write_chat_tokenizer
from tools.datasets.chats.encoding import Chats, EncodedChat, Settings

NAMES = ("Llama 3.1", "Llama 4", "Mistral 7", "Nemotron Nano 2", "Qwen 2", "Qwen 3")
END = {
    "Llama 3.1": "<|eot_id|>",
    "Llama 4": "<|eot|>",
    "Mistral 7": "</s>",
    "Nemotron Nano 2": "\n<SPECIAL_12>",
    "Qwen 2": "<|im_end|>",
    "Qwen 3": "<|im_end|>",
}
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Naïve 数 question?\n"},
    {"role": "assistant", "content": "Hello there. 数!"},
    {"role": "user", "content": "And the answer is: Hello there. 数!"},
    {"role": "assistant", "content": "yes!"},
]
"""The second question says what the first answer said."""
CALL = {"name": "weather", "arguments": {"city": "Zürich"}}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of today",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
            },
        },
    }
]
CALLING = [
    {"role": "user", "content": "Rain?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call12345", "type": "function", "function": CALL}],
    },
    {"role": "tool", "name": "weather", "tool_call_id": "call12345", "content": "no rain"},
    {"role": "assistant", "content": "The answer is: no rain."},
]
CALLED = {
    "Llama 3.1": '{"name": "weather", "parameters": {"city": "Zürich"}}<|eot_id|>',
    "Llama 4": '<|python_start|><|python_end|>{"name": "weather", "parameters": {"city": "Zürich"}}<|eot|>',
    "Mistral 7": '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Zürich"}, "id": "call12345"}]</s>',
    "Qwen 3": '<tool_call>\n{"name": "weather", "arguments": {"city": "Zürich"}}\n</tool_call><|im_end|>',
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, templates = tmp_path_factory.mktemp("tokenizers"), published_templates()
    assert tuple(sorted(templates)) == NAMES
    return {name: write_chat_tokenizer(folder / name, text) for name, text in templates.items()}


def encoded(folder: Path, value: dict[str, Any], **settings: Any) -> EncodedChat:
    chats = Chats(folder, Settings(**settings))
    (made,) = chats.encoded([chats.rendered(value)[1]])
    assert isinstance(made, EncodedChat), made
    return made


def answers(chat: EncodedChat) -> list[str]:
    """Return the text of each run of learnt tokens."""
    found, last = [], False
    for is_learnt, (begin, end) in zip(chat.learnt, chat.offsets.tolist(), strict=True):
        if is_learnt:
            found = [*found[:-1], (found[-1][0], end)] if last else [*found, (begin, end)]
        last = bool(is_learnt)
    return [chat.text[begin:end] for begin, end in found]


def by_transformers(folder: Path, messages: Any, tools: Any = None) -> list[int]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return list(tokenizer.apply_chat_template(messages, tools=tools, tokenize=True, return_dict=False))


@pytest.mark.parametrize("name", NAMES)
def test_the_ids_are_those_of_transformers_and_answers_end_with_their_mark(folders: Any, name: str) -> None:
    chat = encoded(folders[name], {"messages": TALK})
    assert chat.ids == by_transformers(folders[name], TALK)
    assert answers(chat) == [f"Hello there. 数!{END[name]}", f"yes!{END[name]}"]


@pytest.mark.parametrize("name", CALLED)
def test_calls_of_tools_are_answers_and_results_are_not(folders: Any, name: str) -> None:
    chat = encoded(folders[name], {"messages": CALLING, "tools": TOOLS})
    assert chat.ids == by_transformers(folders[name], CALLING, TOOLS)
    assert answers(chat) == [CALLED[name], f"The answer is: no rain.{END[name]}"]


@pytest.mark.parametrize("name", ["Nemotron Nano 2", "Qwen 2"])
def test_tools_that_a_template_leaves_out_are_refused(folders: Any, name: str) -> None:
    with pytest.raises(ConversationError, match="the chat template does not write `tools`"):
        encoded(folders[name], {"messages": TALK, "tools": TOOLS})


@pytest.mark.parametrize("name", ["Nemotron Nano 2", "Qwen 2"])
def test_calls_that_a_template_leaves_out_are_refused(folders: Any, name: str) -> None:
    with pytest.raises(ConversationError, match="does not write the call of `weather` in message 2"):
        encoded(folders[name], {"messages": CALLING})


@pytest.mark.parametrize("thinks", [False, True])
def test_dropped_thoughts_of_earlier_answers_are_not_learnt_and_those_of_the_last_are(
    folders: Any, tmp_path: Path, thinks: bool
) -> None:
    folder = folders["Qwen 3"]
    if thinks:  # as Qwen 3's own: its prompt does not begin the thoughts
        own = published_templates()["Qwen 3"].partition("\n")[2]
        folder = write_chat_tokenizer(tmp_path / "tokenizer", own)
    first = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello there."}
    last = {"role": "assistant", "content": "<think>\nha\n</think>\n\nyes!"}
    talk = [TALK[1], first, TALK[3], last]
    chat, begun = encoded(folder, {"messages": talk}), "<think>\n" if thinks else ""
    assert chat.ids == by_transformers(folder, talk)
    assert "hm" not in chat.text
    assert answers(chat) == ["Hello there.<|im_end|>", f"{begun}ha\n</think>\n\nyes!<|im_end|>"]
    apart = [TALK[1], {"role": "assistant", "reasoning": "ha", "content": "yes!"}]
    assert answers(encoded(folder, {"messages": apart})) == [f"{begun}ha\n</think>\n\nyes!<|im_end|>"]


def test_other_roles_and_messages_without_a_loss(folders: Any) -> None:
    both = encoded(folders["Qwen 2"], {"messages": TALK}, roles=("user", "assistant"))
    contents = [one["content"] for one in TALK[1:]]
    assert answers(both) == [f"{content}<|im_end|>" for content in contents]
    quiet = [*TALK[:2], {**TALK[2], "weight": 0}, *TALK[3:]]
    assert answers(encoded(folders["Qwen 2"], {"messages": quiet})) == ["yes!<|im_end|>"]


def test_a_template_that_names_its_generations_gives_the_mask_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    folder = write_chat_tokenizer(tmp_path / "tokenizer", template)
    chat = encoded(folder, {"messages": TALK})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    made = tokenizer.apply_chat_template(TALK, tokenize=True, return_assistant_tokens_mask=True)
    assert chat.ids == made["input_ids"]
    assert chat.learnt.astype(int).tolist() == made["assistant_masks"]


def test_a_template_that_leaves_out_or_moves_an_answer_is_refused(tmp_path: Path) -> None:
    drops = "{% for m in messages if m.role == 'user' %}{{ m.content + '<|im_end|>' }}{% endfor %}"
    last_first = "{% for m in messages[::-1] %}{{ m.role + m.content }}{% endfor %}"
    for number, template in enumerate((drops, last_first)):
        chats = Chats(write_chat_tokenizer(tmp_path / str(number), template), Settings())
        with pytest.raises(ConversationError, match=r"the answer in message \d cannot be found"):
            chats.rendered({"messages": TALK})


def test_lists_of_texts_are_joined_for_a_template_without_them(folders: Any) -> None:
    parts = [{"type": "text", "text": "Hello"}, {"type": "text", "text": "there."}]
    talk = [TALK[1], {"role": "assistant", "content": parts}]
    joined = [TALK[1], {"role": "assistant", "content": "Hello\nthere."}]
    assert encoded(folders["Qwen 2"], {"messages": talk}).ids == by_transformers(folders["Qwen 2"], joined)
    assert encoded(folders["Llama 4"], {"messages": talk}).ids == by_transformers(folders["Llama 4"], talk)
