"""Conversations about the standard library: questions, one-paragraph answers, and no file is lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from flagscale.errors import UserError
from flagscale_testing.golden_losses import TEXT
from tools.datasets import docstrings


def test_the_answer_is_the_first_paragraph_of_the_docstring() -> None:
    asked = {
        one["messages"][0]["content"]: one["messages"][1]["content"]
        for one in docstrings.conversations(["textwrap", "os.path"])
    }
    assert (
        asked["What is textwrap.shorten in Python?"]
        == "Collapse and truncate the given text to fit in the given width."
    )
    assert asked["What is os.path.lexists in Python?"].startswith("Test whether a path exists.")
    assert not any("re.compile" in question or "._" in question for question in asked)


def test_a_class_without_a_docstring_has_not_that_of_its_base() -> None:
    answers = [one["messages"][1]["content"] for one in docstrings.conversations(["inspect"])]
    assert answers
    assert "Common base class for all non-exit exceptions." not in answers


def test_the_shipped_file_was_written_by_the_tool() -> None:
    """Other patch versions of Python may have changed a few docstrings."""
    shipped = [json.loads(line) for line in TEXT.open()]
    assert len({one["messages"][0]["content"] for one in shipped}) == len(shipped)
    by_tool = [*docstrings.conversations()]
    assert sum(one in shipped for one in by_tool) > 0.9 * len(by_tool)


def test_an_existing_file_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "docstrings.jsonl"
    path.write_text("mine")
    monkeypatch.setattr(sys, "argv", ["docstrings.py", "--output", str(path)])
    with pytest.raises(UserError, match="exists already"):
        docstrings.main()
    assert path.read_text() == "mine"
    monkeypatch.setattr(sys, "argv", ["docstrings.py", "--output", str(path), "--overwrite"])
    assert docstrings.main() == 0
    assert len(path.read_text().splitlines()) == len([*docstrings.conversations()])
