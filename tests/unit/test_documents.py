"""Every kind of wrong form of a YAML file that `make fuzz` or a user has found is reported with its line."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flagscale.config.documents import Document, read_document


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(content: str | bytes) -> Document:
    path = Path("a.yaml")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_document(path)


NESTED = "[" * 60 + "]" * 60
CHAIN = "\n".join(f"k{n + 1}: &k{n + 1} [[[[[[*k{n}]]]]]]" for n in range(20))
BOMB = "\n".join(f"k{n + 1}: &k{n + 1} [*k{n}, *k{n}]" for n in range(40))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: 1\nb: \xe9\n", "a.yaml:2: this is not UTF-8 text"),
        ("a: 1\n".encode("utf-16"), "a.yaml:1: this is not UTF-8 text"),
        ("a: 1\nb: x\0y\n", "a.yaml:2: YAML does not allow the character U+0000"),
        ('a: 1\nb: "x\\0y"\n', "a.yaml:2: a value cannot contain the character U+0000"),
        ("a: 1\n\tb: 2\n", "a.yaml:2: not valid YAML"),
        ("a: 1\n  b: 2\n", "a.yaml:2: not valid YAML: mapping values are not allowed"),
        ("a: 'x\nb: 2\nc: 3\n", "(it begins in line 1)"),
        ("a: *x\n", "a.yaml:1: not valid YAML: found undefined alias"),
        ("a: 1\n---\nb: 2\n", "but found another document"),
        ("- a\n- b\n", "a.yaml:1: a file holds keys with values (`key: value`), not a list"),
        ("word\n", "not `word`"),
        ("3\n", "not `3`"),
        (f"a: {NESTED}\n", "a.yaml:1: more than 50 levels of nesting"),
        ("a: 1\nb: &b [*b]\n", "a.yaml:2: an alias (`*`) stands within what it refers to"),
        ("a: &a\n  <<: *a\n", "an alias (`*`) stands within what it refers to"),
        (f"k0: &k0 [1]\n{CHAIN}\n", "aliases (`*`) stand for more than 50 levels of nesting"),
        (f"k0: &k0 [1]\n{BOMB}\n", "aliases (`*`) stand for more than 100000 values"),
        ("a: 1\nb: 2\na: 3\n", "a.yaml:3: the key `a` is given twice (first in line 1)"),
        ("a:\n  1: x\n  1: y\n", "a.yaml:3: the key `1` is given twice"),
        ("a: 1\n? [x, y]\n: 2\n", "a.yaml:2: a key must be a word, not a list"),
        ("? {x: y}\n: 2\n", "a.yaml:1: a key must be a word, not a group of keys"),
        ("a:\n  null: 2\n", "a.yaml:2: YAML reads this name as None"),
        ("a:\n  ~: 2\n", "a.yaml:2: YAML reads this name as None"),
        ("a:\n  .nan: 2\n", "a.yaml:2: YAML reads this name as nan"),
        ("a: 1\n<<: 3\n", "a.yaml:2: not valid YAML: while constructing a mapping"),
        ("a: <<\n", "a.yaml:1: `<<` means something else in YAML"),
        ("a: =\n", "a.yaml:1: `=` means something else in YAML"),
        ("a: !!python/name:os.system\n", "the tag `!!python/name:os.system` is not supported here"),
        ("a: !!python/object/apply:pathlib.Path [b]\n", "the tag `!!python/object/apply:pathlib.Path`"),
        ("a: !!binary aGk=\n", "the tag `!!binary` is not supported here"),
        ("a: !!set {b, c}\n", "the tag `!!set` is not supported here"),
        ("a: !!timestamp 2024-13-45\n", "the tag `!!timestamp` is not supported here"),
        ("a: !mine b\n", "the tag `!mine` is not supported here"),
        ("a: !!str [b]\n", "the tag `!!str` is not supported here"),
        ("!!binary aGk=: 1\n", "the tag `!!binary` is not supported here"),
        ("a: !!int x\n", "`x` cannot be read as a whole number"),
        ("a: !!int ''\n", "`` cannot be read as a whole number"),
        ("a: 0x_\n", "`0x_` cannot be read as a whole number"),
        ("a: !!float x\n", "`x` cannot be read as a number"),
        ("a: !!bool x\n", "`x` cannot be read as a value of the type `bool`"),
        (f"a: {'9' * 5000}\n", "a.yaml:1: a number of more than 1000 digits"),
        (f"a: 0x{'f' * 5000}\n", "a.yaml:1: a number of more than 1000 digits"),
        ("a: 1\nb: ${c\n", "a.yaml:2: an interpolation cannot be read"),
        ("a: ${}\n", "a.yaml:1: an interpolation cannot be read"),
        ("# @package\na: 1\n", "a.yaml:1: a first line that begins with `# @`"),
        ("# @package a b\na: 1\n", "a.yaml:1: a first line that begins with `# @`"),
        ("# @package a.b.\na: 1\n", "a.yaml:1: a first line that begins with `# @`"),
        ("# @package ${x}\na: 1\n", "a.yaml:1: a first line that begins with `# @`"),
        ("# @package hydra\nrun: 1\n", "a.yaml:1: a first line that begins with `# @`"),
        ("\n\n# @author: Jane Doe\na: 1\n", "a.yaml:3: a first line that begins with `# @`"),
        ("# first\n\n# @package b\na: 1\n", "a.yaml:3: Hydra ignores a `# @package` line"),
        ("a: 1\ndefaults: {}\n", "a.yaml:2: `defaults` must be a list, not a group of keys"),
        ("defaults:\na: 1\n", "a.yaml:1: `defaults` must be a list, not nothing"),
        ("defaults: train\n", "a.yaml:1: `defaults` must be a list, not `train`"),
        ("defaults: ${x}\n", "a.yaml:1: `defaults` must be a list, not `${x}`"),
        ("defaults:\n- b\n- 1\n", "a.yaml:3: defaults: `1` is not the name of a file"),
        ("defaults: [null]\n", "a.yaml:1: defaults: nothing is not the name of a file"),
        ("defaults: [[b]]\n", "defaults: a list is not the name of a file"),
        ("defaults:\n- ???\n", "a.yaml:2: defaults: `???` is not the name of a file"),
        ("defaults: ['']\n", "defaults: `` is not the name of a file"),
        (f"defaults: [{'x' * 300}]\n", "is not the name of a file"),
        (f"defaults: [{{train: {'x' * 300}}}]\n", "is not the name of a file of `train`"),
        ("defaults: [{}]\n", "defaults: an entry names one group, not 0"),
        ("defaults:\n- train: b\n  serve: c\n", "a.yaml:2: defaults: an entry names one group, not 2"),
        ("defaults: [{1: b}]\n", "defaults: `1` is not the name of a group"),
        ("defaults: [{b: {c: d}}]\n", "defaults: a group of keys is not the name of a file of `b`"),
        ("defaults: [{b: [1]}]\n", "defaults: `1` is not the name of a file of `b`"),
        ("defaults: [{b: 1}]\n", "defaults: `1` is not the name of a file of `b`"),
        ("defaults: ['${python_version:x}']\n", "is not the name of a file"),
        ("defaults:\n- _self_\n- _self_\n", "a.yaml:3: defaults: `_self_` is given twice"),
        ("defaults:\n- b: c\n- b: d\n", "a.yaml:3: defaults: `b` is given twice"),
    ],
)
def test_one_mistake(content: str | bytes, expected: str) -> None:
    (problem,) = read(content).problems
    assert expected in str(problem)
    assert problem.where.startswith("a.yaml:")


@pytest.mark.parametrize(
    ("content", "values"),
    [
        ("", {}),
        ("# nothing\n", {}),
        ("null\n", {}),
        ("---\n", {}),
        ("\ufeffa: 1\n", {"a": 1}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("a: 1e3\nb: 2024-01-02\nc: no\n", {"a": 1000.0, "b": "2024-01-02", "c": False}),
        ("a: {0: x, 1.5: y, true: z}\n", {"a": {0: "x", 1.5: "y", True: "z"}}),
        ("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\n", {"a": {"x": 1, "y": 2}, "b": {"x": 3, "y": 2}}),
        (
            "a: &a {x: 1}\nb: &b {<<: *a, x: 2}\nc: {<<: *b}\n",
            {"a": {"x": 1}, "b": {"x": 2}, "c": {"x": 2}},
        ),
        ("a: !!str 1\nb: !!int '2'\n", {"a": "1", "b": 2}),
        ("a: ${b.c}\nb: ${oc.env:X,'y}'}\n", {"a": "${b.c}", "b": "${oc.env:X,'y}'}"}),
        ("a: ${b??}\nc: ${d:??}\n", {"a": "${b??}", "c": "${d:??}"}),
        ("a:\tx\n", {"a": "x"}),
        ("defaults: [b, c@d, {e: f}, {g: null}, {h: [i, j]}, _self_, override k: l]\n", None),
        ("defaults: ['b_${c}', {d: '${e/f}'}]\n", None),
    ],
)
def test_sound_files(content: str, values: dict[object, object] | None) -> None:
    document = read(content)
    assert document.problems == ()
    if values is not None:
        assert document.values == values


def test_all_mistakes_of_a_file_are_reported() -> None:
    text = "defaults: [1]\na: !!set {x}\nb: 1\nb: 2\nc: !x y\nd: {null: 1}\n"
    assert [problem.where for problem in read(text).problems] == [f"a.yaml:{n}" for n in (4, 2, 5, 6, 1)]
    assert [problem.where for problem in read("a: 1\na: 2\nb: [\n").problems] == ["a.yaml:2", "a.yaml:4"]


@pytest.mark.parametrize(
    "rest", ["b: [\nc: 1\n", "b: 1\nb: 2\n", "b:\n  c: 'x\n", "b: 1\n c: 2\n", "b: ${\n"]
)
def test_the_files_beside_a_broken_one_are_still_known(rest: str) -> None:
    assert read(f"defaults:\n- c\n- {{d: e}}\n{rest}").values == {"defaults": ["c", {"d": "e"}]}
    assert read(rest).values == {}


def test_a_file_that_changes_is_read_again() -> None:
    assert read("a: 1\n").values == {"a": 1}
    os.utime("a.yaml", (0, 0))
    assert read("a: 2\n").values == {"a": 2}


def test_what_is_no_file() -> None:
    Path("folder.yaml").mkdir()
    Path("loop.yaml").symlink_to("loop.yaml")
    for name, reason in {
        "folder": "Is a directory",
        "loop": "Too many levels",
        "absent": "No such file",
    }.items():
        (problem,) = read_document(Path(f"{name}.yaml")).problems
        assert str(problem).startswith(f"{name}.yaml: the file cannot be read: {reason}")
