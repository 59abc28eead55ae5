"""Preparing conversations: pairs with masks, statistics, a killed run, and the view."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy
import pytest

from flagscale.checks import indexed
from flagscale.checks.facts import facts, facts_path
from flagscale.errors import UserError
from flagscale_testing.chats import CONVERSATIONS, write_lines
from flagscale_testing.pairs import documents_in
from tools.datasets import chat as tool_chat
from tools.datasets import parts
from tools.datasets import verify as tool_verify
from tools.datasets.chat import prepare
from tools.datasets.chats.encoding import Chats, Settings
from tools.datasets.chats.picture import picture
from tools.datasets.chats.reading import conversation_at
from tools.datasets.chats.view import shown
from tools.datasets.masks import masks_of, problems_of_masks
from tools.datasets.records import source_files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A file of 12 conversations."""
    return write_lines(tmp_path / "chats.jsonl", *CONVERSATIONS)


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir()) if file.is_file()}


def test_each_conversation_is_a_document_with_the_ids_of_transformers_and_a_mask(
    source: Path, chat_tokenizer: Path, weird_path: Path
) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(chat_tokenizer)
    prepared = prepare([source], chat_tokenizer, weird_path, valid_every=5, conversations_per_part=4)
    ids = [tokenizer.apply_chat_template(one["messages"], return_dict=False) for one in CONVERSATIONS]
    assert documents_in(weird_path / "valid_text_document") == ids[::5]
    train = weird_path / "train_text_document"
    assert documents_in(train) == [one for number, one in enumerate(ids) if number % 5]
    masks = documents_in(weird_path / "train_loss_mask_document")
    assert indexed.summary(weird_path / "train_loss_mask_document").dtype == "uint8"
    learnt = [
        tokenizer.decode([token for token, is_learnt in zip(*pair, strict=True) if is_learnt])
        for pair in zip(documents_in(train), masks, strict=True)
    ]
    kept = [one["messages"] for number, one in enumerate(CONVERSATIONS) if number % 5]
    assert learnt == [messages[1]["content"] + "<|im_end|>" for messages in kept]
    known = facts(train)
    assert known
    assert (known["conversations"], known["roles"]) == (True, ["assistant"])
    assert (problems_of_masks(train), prepared.splits["train"].documents) == ([], 9)
    assert not (weird_path / "text_document.parts").exists()


def test_statistics_and_the_picture_are_written(source: Path, chat_tokenizer: Path, tmp_path: Path) -> None:
    prepare([source], chat_tokenizer, tmp_path / "out", Settings(longest=25), valid_every=0)
    known = json.loads((tmp_path / "out" / "conversations.json").read_text())
    prefix = tmp_path / "out" / "train_text_document"
    lengths = [len(one) for one in documents_in(prefix)]
    masks = documents_in(tmp_path / "out" / "train_loss_mask_document")
    left = known["left_out"]["longer than --longest"]
    assert known["conversations"] == len(lengths) == 12 - left["conversations"]
    assert left["conversations"] > 0
    assert left["first"][0].startswith(f"{source}:{len(lengths) + 1}: ")
    assert known["turns"] == {"user": len(lengths), "assistant": len(lengths)}
    assert (known["tokens"], known["learnt_tokens"]) == (sum(lengths), sum(map(sum, masks)))
    assert masks_of(prefix) == f", {known['learnt_tokens']:,} of them learnt"
    assert (known["lengths"]["min"], known["lengths"]["max"]) == (min(lengths), max(lengths))
    assert (tmp_path / "out" / "lengths.svg").read_text().startswith("<svg")


def test_the_picture_counts_every_conversation() -> None:
    import re

    text = picture(numpy.array([1, 1, 7, 8, 300]), 7, 300)
    assert sum(map(int, re.findall(r"<title>(\d+) conversations", text))) == 5
    assert "median 7" in text
    assert picture(numpy.array([5]), 5, 5)


def test_a_run_that_was_ended_continues_to_the_same_bytes(
    source: Path, chat_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, output, builder = tmp_path / "whole", tmp_path / "out", parts._builder
    prepare([source], chat_tokenizer, whole, conversations_per_part=3)

    def ended(prefix: Path, dtype: str) -> Any:
        if prefix.parent.name == "000002.tmp":
            raise KeyboardInterrupt
        return builder(prefix, dtype)

    monkeypatch.setattr(parts, "_builder", ended)
    with pytest.raises(KeyboardInterrupt):
        prepare([source], chat_tokenizer, output, conversations_per_part=3)
    assert not [name for name in content(output) if name.endswith((".bin", ".idx", ".json", ".svg"))]
    monkeypatch.undo()
    assert prepare([source], chat_tokenizer, output, conversations_per_part=3).made_now
    assert content(output) == content(whole)
    assert not prepare([source], chat_tokenizer, output, conversations_per_part=3).made_now
    with pytest.raises(UserError, match=r"roles \['assistant'\] \(now \['user'\]\)"):
        prepare([source], chat_tokenizer, output, Settings(roles=("user",)), conversations_per_part=3)


def test_lost_masks_are_remade(source: Path, chat_tokenizer: Path, tmp_path: Path) -> None:
    prepare([source], chat_tokenizer, tmp_path / "out")
    before = content(tmp_path / "out")
    (tmp_path / "out" / "train_loss_mask_document.bin").unlink()
    assert prepare([source], chat_tokenizer, tmp_path / "out").made_now
    assert content(tmp_path / "out") == before


def test_masks_that_do_not_fit_are_found(source: Path, chat_tokenizer: Path, tmp_path: Path) -> None:
    prepare([source], chat_tokenizer, tmp_path / "out", valid_every=0)
    prefix, masks = (tmp_path / "out" / f"train_{kind}_document" for kind in ("text", "loss_mask"))
    values = numpy.fromfile(indexed.bin_path(masks), numpy.uint8)
    first = len(documents_in(prefix)[0])
    values[:first] = 0
    values[-1] = 2
    values.tofile(indexed.bin_path(masks))
    wrong = problems_of_masks(prefix)
    assert [one.removeprefix(f"{masks}: ") for one in wrong] == [
        "has the value 2; a mask is 0 or 1",
        "1 conversation(s) without a token that is learnt, document 0 is the first",
    ]
    indexed.bin_path(masks).unlink()
    indexed.idx_path(masks).unlink()
    assert "its facts name conversations, but" in problems_of_masks(prefix)[0]
    facts_path(prefix).unlink()
    assert problems_of_masks(prefix) == []


def test_one_conversation_is_shown_with_its_answers_marked(source: Path, chat_tokenizer: Path) -> None:
    where, encoded = conversation_at(source_files([source]), Chats(chat_tokenizer, Settings()), 2)
    assert where == f"{source}:2"
    before, answer = "<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n", "yes! yes! <|im_end|>"
    assert shown(encoded, colours=False) == f"{before}⟦{answer}⟧\n"
    assert shown(encoded, colours=True) == f"\x1b[90m{before}\x1b[0m{answer}\x1b[90m\n\x1b[0m"
    with pytest.raises(UserError, match="there are only 12 conversations"):
        conversation_at(source_files([source]), Chats(chat_tokenizer, Settings()), 13)


def test_the_command_prints_statistics_or_one_conversation_or_a_mistake(
    source: Path, chat_tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def command(*more: object) -> int:
        words = ["chat.py", "--source", source, "--tokenizer", chat_tokenizer, *more]
        monkeypatch.setattr("sys.argv", [*map(str, words)])
        return tool_chat.run(tool_chat.main)

    assert command("--output", tmp_path / "out", "--valid-every", 0) == 0
    printed = capsys.readouterr().out
    assert "12 conversations, 24 turns (user 12, assistant 12)" in printed
    assert "tokens per conversation: min " in printed
    monkeypatch.setattr("sys.argv", ["verify.py", str(tmp_path / "out" / "train_text_document")])
    assert tool_verify.main() == 0
    learnt = json.loads((tmp_path / "out" / "conversations.json").read_text())["learnt_tokens"]
    assert f", {learnt} of them learnt" in capsys.readouterr().out
    assert command("--view", 3) == 0
    assert "⟦yes! yes! yes! <|im_end|>⟧" in capsys.readouterr().out
    assert command("--view", 3, "--valid-every", 7, "--overwrite", "--skip-mistakes") == 2
    refused = capsys.readouterr().err
    assert [name for name in ("--valid-every", "--overwrite", "--skip-mistakes") if name not in refused] == []
    assert "--overwrite: has no effect with --view" in refused
    assert command("--view", 3, "--longest", 0) == 2
    assert "--longest 0: must be 1 or more" in capsys.readouterr().err
    assert command("--output", tmp_path / "two", "--chat-template", "chatmll") == 2
    assert "--chat-template chatmll: is neither a file nor one of chatml, vicuna" in capsys.readouterr().err
    assert not (tmp_path / "two").exists()
