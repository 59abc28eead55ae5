"""Prompts of a file: every wrong line is reported with its number."""

from __future__ import annotations

import json
from pathlib import Path

from flagscale.checks.prompts import Prompt, inline_prompts, read_prompts


def test_a_text_file_holds_one_prompt_per_line(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\n  two \r\nthrée")
    expected = [Prompt("one", number=1), Prompt("  two ", number=3), Prompt("thrée", number=4)]
    assert read_prompts(file) == (expected, [])


def test_json_lines(tmp_path: Path) -> None:
    lines = [
        {"prompt": "one", "id": 7},
        {"prompt_token_ids": [1, 2]},
        {"messages": [{"role": "user", "content": "hello"}]},
    ]
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    prompts, wrong = read_prompts(file)
    assert wrong == []
    assert [prompt.line for prompt in prompts] == lines
    assert [prompt.shown for prompt in prompts] == ["one", "2 token ids", "user: hello"]


def test_every_bad_line_is_reported(tmp_path: Path) -> None:
    bad = [
        "{",
        "[]",
        '{"text": "x"}',
        '{"prompt": ""}',
        '{"prompt": "x", "messages": []}',
        '{"messages": ["x"]}',
    ]
    bad += ['{"prompt": "x", "outputs": 1}']
    bad += ['{"prompt_token_ids": [1, true]}', '{"prompt_token_ids": []}']
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "good"}\n' + "\n".join(bad))
    prompts, wrong = read_prompts(file)
    assert len(prompts) == 1
    assert [line.split(":")[1] for line in wrong] == [str(number) for number in range(2, 11)]


def test_files_without_prompts(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "latin.txt").write_bytes(b"\xe9\xe8")
    assert "contains no prompts" in read_prompts(tmp_path / "empty.txt")[1][0]
    assert "not UTF-8" in read_prompts(tmp_path / "latin.txt")[1][0]
    assert "No such file" in read_prompts(tmp_path / "absent.txt")[1][0]


def test_inline() -> None:
    assert list(inline_prompts(["a", 3])) == [Prompt("a"), "prompt 1 is not a text: 3"]
