"""Preparing conversations with mistakes: refused by line, or left out and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flagscale.errors import UserError
from flagscale_testing.chat_templates import write_chat_tokenizer
from flagscale_testing.chats import CHATML, CONVERSATIONS, write_lines
from tools.datasets.chat import prepare

BAD = [
    *("{'messages': 1}", {"text": "x"}, {"messages": []}, {"messages": [{"role": "user", "content": "?"}]}),
    {"messages": [{"role": "usr", "content": "?"}]},
    {"messages": [*CONVERSATIONS[0]["messages"], {"role": "tool", "content": "refused"}]},
]
REFUSES = "{% for m in messages %}{{ raise_exception('no tools') if m.role == 'tool' }}{% endfor %}" + CHATML


def test_mistakes_are_refused_by_line_or_left_out_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_chat_tokenizer(tmp_path / "tokenizer", REFUSES)
    source, output = write_lines(tmp_path / "chats.jsonl", *BAD, *CONVERSATIONS), tmp_path / "out"
    with pytest.raises(UserError) as refused:
        prepare([source], folder, output, conversations_per_part=2)
    lines = [str(problem) for problem in refused.value.problems]
    expected = ["not JSON", "no `messages`", "`messages` is empty", "no message of the role", "unknown role"]
    for number, (line, what) in enumerate(zip(lines, [*expected, "no tools"], strict=False), 1):
        assert line.startswith(f"{source}:{number}: ")
        assert what in line
    assert "6 conversation(s) with mistakes" in lines[-1]
    assert "--skip-mistakes" in lines[-1]
    assert not list(output.glob("*.bin")) + list(output.glob("*.idx")) + list(output.glob("*.json"))
    assert (output / "mistakes.txt").read_text().count("\n") == 6

    prepared = prepare([source], folder, output, conversations_per_part=2, skip_mistakes=True)
    assert "reusing 9 part(s)" in capsys.readouterr().err
    assert sum(held.documents for held in prepared.splits.values()) == 12
    left = json.loads((output / "conversations.json").read_text())["left_out"]
    assert {reason: held["conversations"] for reason, held in left.items()} == {
        "not JSON": 1,
        "another form": 1,
        "empty": 1,
        "no answer": 1,
        "unknown role": 1,
        "refused by the chat template": 1,
    }


def test_every_mistake_is_listed(chat_tokenizer: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "chats.jsonl", *[{"text": "x"}] * 150, *CONVERSATIONS)
    with pytest.raises(UserError, match="150 conversation"):
        prepare([source], chat_tokenizer, tmp_path / "out")
    listed = (tmp_path / "out" / "mistakes.txt").read_text().splitlines()
    assert [line.partition(": ")[0] for line in listed] == [f"{source}:{n}" for n in range(1, 151)]


def test_a_line_that_is_cut_is_named_with_its_column(chat_tokenizer: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "chats.jsonl", '{"messages": [', *CONVERSATIONS)
    with pytest.raises(UserError) as refused:
        prepare([source], chat_tokenizer, tmp_path / "out")
    assert str(refused.value.problems[0]) == f"{source}:1: not JSON (Expecting value at column 15)"


def test_a_refused_source_can_be_fixed_without_overwrite(chat_tokenizer: Path, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "chats.jsonl", "bad", *CONVERSATIONS)
    with pytest.raises(UserError, match="1 conversation"):
        prepare([source], chat_tokenizer, tmp_path / "out")
    write_lines(source, *CONVERSATIONS)
    assert prepare([source], chat_tokenizer, tmp_path / "out").splits["train"].documents == 11
    assert not (tmp_path / "out" / "mistakes.txt").exists()


def test_a_tokenizer_without_a_template_is_refused_with_the_way_out(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "chats.jsonl", *CONVERSATIONS)
    folder = write_chat_tokenizer(tmp_path / "tokenizer", None)
    with pytest.raises(
        UserError, match=r"has no chat template\n.*set --chat-template to one of chatml, vicuna"
    ):
        prepare([source], folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
