"""The glossary of CONTRIBUTING against the names of modules and public classes: one word, one meaning."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "flagscale": ROOT / "flagscale",
    "flagscale_testing": ROOT / "flagscale_testing",
    "megatron.flagscale": ROOT / "megatron/flagscale",
    "vllm_flagscale": ROOT / "vllm/vllm_flagscale",
    "tools": ROOT / "tools",
}


@dataclass(frozen=True)
class Entry:
    """One row of the table."""

    word: str
    means: str
    homes: tuple[str, ...]
    refused: tuple[str, ...]
    """Words that are not used for it."""


def read_glossary(text: str) -> list[Entry]:
    """Return the rows of the table that begins with the columns word, means, home, not."""
    _, _, table = text.partition("| word | means | home | not |\n")
    entries = []
    for line in table.splitlines()[1:]:
        if not line.startswith("|"):
            break
        word, means, homes, refused = (cell.strip() for cell in line.strip("|").split("|"))
        refused_words = tuple(one.strip() for one in refused.split(",") if one.strip())
        entries.append(Entry(word, means, tuple(re.findall(r"`([^`]+)`", homes)), refused_words))
    return entries


def named(packages: dict[str, Path]) -> Iterator[tuple[str, str]]:
    """Yield (module, "") for each module and (module, class) for each of its public classes."""
    for package, folder in packages.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            module = ".".join([package, *(part for part in parts if part != "__init__")])
            yield module, ""
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    yield module, node.name


def words_of(name: str) -> list[str]:
    """Return the words of a name or a term, in lower case and the singular: `HostStates` -> host, state."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)
    return [re.sub(r"(?<=[a-z]{2}[^s])s$", "", part.lower()) for part in parts]


def violations(glossary: Iterable[Entry], names: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Yield the names that contradict the glossary.

    A word that is not used for one thing may have a meaning of its own (`launcher` is no agent): then its own
    row says where classes of that name live. All others are in no name at all.
    """
    entries = list(glossary)
    terms = {tuple(words_of(entry.word)): entry for entry in entries}
    refused = {tuple(words_of(one)): entry.word for entry in entries for one in entry.refused}
    for module, name in names:
        words = words_of(name or module.rpartition(".")[2])
        label = f"{module}.{name}" if name else module
        for term, instead in refused.items():
            starts = range(len(words) - len(term) + 1)
            if term not in terms and any(tuple(words[at : at + len(term)]) == term for at in starts):
                yield f"{label}: `{' '.join(term)}` is not used; say `{instead}`"
        if name:
            ends = (tuple(words[at:]) for at in range(len(words)))
            longest = next((terms[end] for end in ends if end in terms), None)
            if longest and not any(f"{module}.".startswith(f"{home}.") for home in longest.homes):
                yield f"{label}: the home of `{longest.word}` is {' or '.join(longest.homes)}"


GLOSSARY = read_glossary((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))


def test_names_of_modules_and_classes_keep_to_the_glossary() -> None:
    assert list(violations(GLOSSARY, named(PACKAGES))) == []


def test_every_home_exists() -> None:
    known = {module for module, _ in named(PACKAGES)}
    assert [home for entry in GLOSSARY for home in entry.homes if home not in known] == []


def test_each_word_has_one_row_with_a_sentence_and_a_home() -> None:
    words = [entry.word for entry in GLOSSARY]
    assert len(words) > 40
    assert words == sorted(set(words))
    for entry in GLOSSARY:
        assert re.fullmatch(r"[A-Z`][^|]*\.", entry.means), entry.word
        assert entry.homes, entry.word


@pytest.mark.parametrize(
    ("module", "name", "says"),
    [
        ("flagscale.node.agent", "Agent", ""),
        ("flagscale.node.agent.torchrun", "TorchrunAgent", ""),
        ("flagscale.node.agents", "TorchrunAgent", "the home of `agent` is flagscale.node.agent"),
        ("flagscale.node.agent", "AgentState", ""),
        ("flagscale.node.hub", "", "`hub` is not used; say `coordinator`"),
        ("flagscale.node.hubs", "Coordinator", ""),
        ("flagscale.node", "MessageHub", "`hub` is not used; say `coordinator`"),
        ("flagscale.node", "TasksUnderWay", "`under way` is not used; say `in flight`"),
        ("flagscale.node", "WayUnder", ""),
        ("flagscale.node.agent", "AgentLauncher", "the home of `launcher` is flagscale.remote"),
        ("flagscale.remote", "FarmAgent", "the home of `farm agent` is tests"),
    ],
)
def test_the_check_finds_what_contradicts_it(module: str, name: str, says: str) -> None:
    table = (
        "| word | means | home | not |\n|---|---|---|---|\n"
        "| agent | Starts ranks. | `flagscale.node.agent` | launcher |\n"
        "| coordinator | Decides. | `flagscale.node` | hub, master |\n"
        "| farm agent | Of tests. | `tests` | |\n"
        "| in flight | Sent. | `flagscale.node` | under way |\n"
        "| launcher | The command. | `flagscale.remote` | |\n"
    )
    found = list(violations(read_glossary(table), [(module, name)]))
    assert (found == []) if not says else (says in "".join(found))
