"""The names of our environment variables."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = ("flagscale", "megatron", "vllm", "megatron-energon", "tools", "benchmarks")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
PREFIX = "FLAGSCALE_"


def names(text: str) -> Iterator[str]:
    """Yield the strings and keyword arguments in a source text that look like one of our variables."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            name = node.value
        else:
            name = node.arg or "" if isinstance(node, ast.keyword) else ""
        if name.startswith(PREFIX):
            yield name


def test_names_are_found_in_strings_and_keywords() -> None:
    assert [*names('A = "FLAGSCALE_A"; f(FLAGSCALE_B=1); x[f"FLAGSCALE_{c}"]; "the FLAGSCALE_D"')] == [
        "FLAGSCALE_A",
        "FLAGSCALE_B",
        "FLAGSCALE_",
    ]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_variables_are_named_in_one_file(path: Path) -> None:
    found = [*names(path.read_text(encoding="utf-8"))]
    if path == ROOT / "flagscale" / "run" / "env.py":
        assert len(found) == len(set(found)) > 0
    else:
        assert found == [], "import the name from flagscale.run.env"
