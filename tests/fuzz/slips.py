"""Strategies: what a hand that slips does to an experiment, a hostfile, a command line."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import strategies as st

from tests.fuzz.fragments import DEFAULTS, ENTRIES, HEADERS, HOST_LINES, HYDRA, KEYS, VALUES, WHOLE, WORDS
from tests.fuzz.projects import CONFIG, HOSTS, PROJECTS, Project

_BOMB = "bomb: [&a [1, 1], &b [*a, *a], &c [*b, *b], &d [*c, *c], &e [*d, *d], &f [*e, *e], &g [*f, *f]]"
_ELSE = ["folder", "absent", "unreadable", "loop"]
"""What may be in a file's place; see `Project`."""


@st.composite
def lines_after_slip(draw: st.DrawFn, lines: list[str]) -> list[str]:
    """Lines of YAML in one of which a hand has slipped."""
    kind = draw(st.sampled_from([*_LINE_SLIPS, *["value"] * 6, *["key"] * 4, "entry", "insert", "text"]))
    if not lines:
        return [draw(st.sampled_from(HEADERS))]
    where = draw(st.integers(0, len(lines) - 1))
    line = lines[where]
    if kind in _LINE_SLIPS:
        return [*lines[:where], *_LINE_SLIPS[kind](line), *lines[where + 1 :]]
    if kind == "entry":
        return _with_entry(draw, lines)
    key, _, value = line.partition(":")
    indent = key[: len(key) - len(key.lstrip(" -"))]
    other, worth = draw(st.sampled_from(KEYS)), draw(st.sampled_from(VALUES))
    changed = {
        "value": [f"{key}: {worth}"],
        "key": [f"{indent}{other}:{value}"],
        "insert": [line, f"{indent}{other}: {worth}"],
        "text": [f"{key}: {draw(st.text(max_size=12))}"],
    }
    return [*lines[:where], *changed[kind], *lines[where + 1 :]]


def _with_entry(draw: st.DrawFn, lines: list[str]) -> list[str]:
    """Change the defaults list, or put one there."""
    start = next((index for index, line in enumerate(lines) if line.startswith("defaults:")), None)
    if draw(st.integers(0, 4)) == 0:
        rest = [line for line in lines if not line.startswith(("defaults:", "  - "))]
        return [f"defaults: {draw(st.sampled_from(DEFAULTS))}", *rest]
    entry = f"  - {draw(st.sampled_from(ENTRIES))}"
    if start is None:
        return ["defaults:", entry, *lines]
    at = start + draw(st.integers(1, 3))
    return [*lines[:at], entry, *lines[at + draw(st.integers(0, 1)) :]]


_LINE_SLIPS: dict[str, Callable[[str], list[str]]] = {
    "outdent": lambda line: [line[1:] if line.startswith(" ") else line],
    "indent": lambda line: [f" {line}"],
    "tab": lambda line: [f"\t{line.lstrip()}"],
    "tab inside": lambda line: [line.replace(": ", ":\t", 1)],
    "no space": lambda line: [line.replace(": ", ":", 1)],
    "no colon": lambda line: [line.replace(":", "", 1)],
    "two colons": lambda line: [line.replace(":", "::", 1)],
    "dash": lambda line: [f"- {line}"],
    "no dash": lambda line: [line.replace("- ", "", 1)],
    "twice": lambda line: [line, line],
    "away": lambda line: [],
    "comment": lambda line: [f"#{line}"],
    "comma": lambda line: [f"{line},"],
    "equals": lambda line: [line.replace(":", " =", 1)],
    "carriage return": lambda line: [f"{line}\r"],
    "nul": lambda line: [f"{line}\0"],
    "wide space": lambda line: [line.replace(" ", "\u00a0")],
    "quote": lambda line: [f"{line}'"],
    "bracket": lambda line: [
        line.replace("]", "").replace("}", "") if set(line) & set("]}") else f"{line} ]"
    ],
    "half": lambda line: [line[: len(line) // 2]],
    "merge": lambda line: [f"{line} &m", "<<: *m"],
    "bomb": lambda line: [_BOMB, line],
    "anchor": lambda line: [line.replace(": ", ": &a ", 1), "again: *a"],
}


def _encoded(draw: st.DrawFn, lines: list[str]) -> bytes:
    ending = draw(st.sampled_from(["\n"] * 8 + ["\r\n", "\r", "\u2028"]))
    encoding = draw(st.sampled_from(["utf-8"] * 10 + ["utf-16", "latin-1", "utf-8-sig", "cp1251"]))
    text = ending.join([*lines, ""])
    return text.encode(encoding, errors="surrogatepass" if "8" in encoding else "replace")


@st.composite
def yaml_slips(draw: st.DrawFn, of_task: bool) -> Project:
    """A project whose experiment file, or whose task file, has one to three slips."""
    project = draw(st.sampled_from(PROJECTS))
    names = [name for name in project.files if (name != CONFIG) == of_task and name != HOSTS]
    name = draw(st.sampled_from(names))
    choice = draw(st.integers(0, 19))
    if choice == 0:
        return project.with_file(name, draw(st.sampled_from(WHOLE)).encode("latin-1"))
    if choice == 1:
        return project.with_file(name, draw(st.sampled_from([*_ELSE, "fifo"])))
    lines = project.text(name).splitlines()
    if choice == 2:
        lines = [draw(st.sampled_from(HEADERS)), *lines]
    elif choice == 3:
        lines = [*lines, f"hydra: {draw(st.sampled_from(HYDRA))}"]
    else:
        for _ in range(draw(st.integers(1, 3))):
            lines = draw(lines_after_slip(lines))
    return project.with_file(name, _encoded(draw, lines))


@st.composite
def hostfile_slips(draw: st.DrawFn) -> Project:
    """A project with a hostfile that has slips."""
    project = draw(st.sampled_from([project for project in PROJECTS if HOSTS in project.files]))
    choice = draw(st.integers(0, 9))
    if choice == 0:
        return project.with_file(HOSTS, draw(st.sampled_from(_ELSE)))
    if choice == 1:
        return project.with_file(HOSTS, draw(st.sampled_from(WHOLE)).encode("latin-1"))
    lines = project.text(HOSTS).splitlines()
    for _ in range(draw(st.integers(1, 2))):
        where = draw(st.integers(0, len(lines)))
        line = draw(st.one_of(st.sampled_from(HOST_LINES), st.text(max_size=10)))
        lines = [*lines[:where], line, *lines[where + draw(st.integers(0, 1)) :]]
    return project.with_file(HOSTS, _encoded(draw, lines))


@st.composite
def word_slips(draw: st.DrawFn) -> Project:
    """A project with one or two words, of which a slip made no sound overrides or flags."""
    project = draw(st.sampled_from(PROJECTS))
    made = st.builds(
        "{}{}={}".format,
        st.sampled_from(["", "+", "++", "~"]),
        st.sampled_from([*_SET, *KEYS]),
        st.sampled_from(VALUES),
    )
    words = draw(st.lists(st.one_of(st.sampled_from(WORDS), made), min_size=1, max_size=2))
    return project.with_words(map(_as_typed, words))


_SET = [
    "experiment",
    "experiment.task.type",
    "experiment.runner.nnodes",
    "experiment.exp_dir",
    "train",
    "a.b",
]


def _as_typed(word: str) -> str:
    """Return a word as Python receives it from a shell: without NUL, and bytes that are not UTF-8 escaped."""
    return word.replace("\0", "").encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape")
