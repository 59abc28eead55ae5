"""docs/from_v060.md holds the rows of the tables that files of FlagScale v0.6.0 are translated by."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from flagscale.config.v060 import keys as v060
from flagscale.config.v060.tokenizers import TOKENIZERS

PAGE = Path(__file__).parents[2] / "docs" / "from_v060.md"
_WORDS = {
    "rename": "renamed to `{}`",
    "drop": "dropped: {}",
    "refuse": "refused: {}",
}


def table(rows: Mapping[str, str], head: str) -> str:
    """Return a table with one row per text, and all names that have it."""
    names: dict[str, list[str]] = {}
    for name, text in rows.items():
        names.setdefault(text, []).append(f"`{name}`")
    lines = [f"| {', '.join(given)} | {text.replace('|', chr(92) + '|')} |" for text, given in names.items()]
    return "\n".join([f"| {head} |", "|---|---|", *lines]) + "\n"


def changes(rows: Mapping[str, v060.Change]) -> dict[str, str]:
    """Return what happens to each key."""
    words = {key: _WORDS[change.act].format(change.text) for key, change in rows.items()}
    off = {key: f" (dropped if it is {change.off})" for key, change in rows.items() if change.off is not None}
    return {key: text + off.get(key, "") for key, text in words.items()}


TABLES = {
    "experiment": table(changes(v060.EXPERIMENT), "key of `experiment` | what happens"),
    "task": table(changes(v060.TASK), "keys of `train` | what happens"),
    "own rules": table(v060.WITH_OWN_RULES, "key of `train` | what happens"),
    "inference": table(changes(v060.INFERENCE), "keys of `inference` | what happens"),
    "emu3": table(changes(v060.EMU3), "keys of `inference` with `mode` G or U | what happens"),
    "tokenizers": table({k: f"`{v}`" for k, v in TOKENIZERS.items()}, "`tokenizer_type` | now"),
    "programs": table(
        {path: f"`{name}`" for path, name in v060.ENTRYPOINTS.items()},
        "`experiment.task.entrypoint` | now",
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_the_page_holds_these_rows_only(name: str) -> None:
    assert f"{TABLES[name]}\n" in f"{PAGE.read_text('utf-8')}\n", (
        f"put this into {PAGE.name}:\n{TABLES[name]}"
    )
