"""Text sources: the order of documents, skipped files, and the message for each mistake."""

import json
import os
import re
from argparse import ArgumentParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagscale.errors import UserError
from tools.datasets.documents import (
    Source,
    add_arguments,
    open_source,
    skipped_notice,
    source_of,
    standard_library,
)


def texts(source: Source) -> list[str]:
    return [document.text for document in source.documents(_nothing_is_skipped)]


def _nothing_is_skipped(path: Path) -> None:
    raise AssertionError(f"{path} skipped")


def test_a_folder_gives_its_text_files_in_order(weird_path: Path) -> None:
    for name in ("b.txt", "a.md", "sub/c.PY", "ignored.bin", ".hidden/d.txt", "blank.rst"):
        (weird_path / name).parent.mkdir(exist_ok=True)
        (weird_path / name).write_text("" if name == "blank.rst" else name)
    (weird_path / "lines.jsonl").write_text('{"text": "one"}\n\n{"text": "two", "more": 1}\n')
    assert texts(open_source(weird_path)) == ["a.md", "b.txt", "one", "two", "sub/c.PY"]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1), st.booleans())
def test_any_text_survives_jsonl(
    tmp_path_factory: pytest.TempPathFactory, written: list[str], ascii_only: bool
) -> None:
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    file.write_text(
        "\n".join(json.dumps({"text": text}, ensure_ascii=ascii_only) for text in written), encoding="utf-8"
    )
    expected = [text for text in written if text.strip()]
    if expected:
        assert texts(open_source(file)) == expected
    else:
        with pytest.raises(UserError, match="no text"):
            texts(open_source(file))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{'text': 1}", "not JSON .* at column 2"),
        (b'{"text": "cut', "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'["text"]', "not a JSON object but of type array"),
        (b'{"content": "x"}', r"key 'text' is missing; .* --key .found: content"),
        (b'{"text": 7}', "the value of 'text' is not a string but of type number"),
        (b'{"text": "\xff"}', "not UTF-8"),
        (rb'{"text": "\ud800"}', "the value of 'text' contains half of a surrogate"),
    ],
)
def test_a_bad_line_is_reported_with_its_number(tmp_path: Path, line: bytes, message: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(UserError, match=f"{re.escape(str(file))}:2: {message}.*fix or remove"):
        texts(open_source(file))


def test_another_key_is_read_on_request(tmp_path: Path) -> None:
    (tmp_path / "data.jsonl").write_text('{"content": "x"}')
    assert texts(open_source(tmp_path / "data.jsonl", key="content")) == ["x"]


def test_a_file_that_is_not_text_is_skipped_and_reported(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfgood")
    skipped: list[Path] = []
    assert [document.text for document in open_source(tmp_path).documents(skipped.append)] == ["good"]
    assert skipped == [tmp_path / "a.txt"]
    assert skipped_notice(skipped) == f"skipped 1 file(s), not UTF-8 text: {tmp_path / 'a.txt'}"


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        open_source(tmp_path / "absent")
    with pytest.raises(UserError, match="no file ends in"):
        open_source(tmp_path)
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(UserError, match="no text in 1 file"):
        texts(open_source(tmp_path))
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"no text in 1 file\(s\) \(1 not UTF-8\)"):
        list(open_source(tmp_path).documents(lambda _: None))


def test_files_of_a_folder_that_are_not_read_are_counted_by_suffix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.txt", "b.csv", "c.csv", "LICENSE", ".hidden.csv"):
        (tmp_path / name).write_text(name)
    parser = ArgumentParser()
    add_arguments(parser)
    assert texts(source_of(parser.parse_args(["--source", str(tmp_path)]))) == ["a.txt"]
    error = capsys.readouterr().err
    assert error.startswith(f"{tmp_path}: 3 file(s) are not read (2 .csv, 1 no suffix); ")
    assert error.count("\n") == 1
    source = source_of(parser.parse_args(["--source", str(tmp_path), "--suffixes", "csv", ".TXT"]))
    assert texts(source) == ["a.txt", "b.csv", "c.csv"]


def test_the_fingerprint_depends_on_how_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"text": "x"}')
    as_text = open_source(tmp_path, suffixes=(".json",))
    assert texts(as_text) == ['{"text": "x"}']
    assert as_text.fingerprint() != open_source(tmp_path).fingerprint()


def test_the_fingerprint_depends_on_the_content_and_not_on_the_folder(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    (here / "a.txt").write_text("one")
    before = open_source(here).fingerprint()
    here.rename(there)
    assert open_source(there).fingerprint() == before
    (there / "a.txt").write_text("two")
    os.utime(there / "a.txt", ns=(1, 1))
    assert open_source(there).fingerprint() != before


def test_the_standard_library_excludes_tests_and_machine_variables() -> None:
    source = standard_library()
    names = {file.relative_to(source.root).as_posix() for file in source.files}
    assert {"argparse.py", "asyncio/tasks.py", "pydoc_data/topics.py"} <= names
    assert not [name for name in names if re.search(r"(^|/)tests?/|site-packages|_sysconfigdata", name)]
    assert len(texts(source)) > 300
    assert source.fingerprint() == standard_library().fingerprint()
