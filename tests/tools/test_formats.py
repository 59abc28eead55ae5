"""Corpus files: all formats give the same documents, and a file that is not what its name says is refused."""

import gzip
import io
import json
import pickle
import re
import sqlite3
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from flagscale.errors import UserError
from tools.datasets import json_stream
from tools.datasets.documents import open_source

TEXTS = ["one", "zwei\nLinien, naïve 数", '{"three": []}']
RECORDS: list[dict[str, Any]] = [{"src": "web", "text": text, "id": n} for n, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def zstd(content: bytes) -> bytes:
    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


def parquet_of(**columns: Any) -> bytes:
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table(columns), stream, row_group_size=2)
    return stream.getvalue()


def texts(path: Path, **options: Any) -> list[str]:
    return [document.text for document in open_source(path, **options).documents(lambda _: None)]


def refused(path: Path, content: bytes, **options: Any) -> str:
    """Return why a file with this content is refused."""
    path.write_bytes(content)
    with pytest.raises(UserError) as refusal:
        texts(path, **options)
    (problem,) = refusal.value.problems
    assert str(path) in str(problem)
    return str(problem)


CORPORA = {
    "a.jsonl": LINES,
    "a.JSONL": LINES,
    "a.ndjson": LINES,
    "a.json": LINES,
    "a.Json": b"\xef\xbb\xbf" + LINES,
    "mark.jsonl": b"\xef\xbb\xbf\r\n" + LINES,
    "array.json": json.dumps(RECORDS).encode(),
    "pretty array.json": json.dumps(RECORDS, indent=2, ensure_ascii=False).encode(),
    "pretty objects.json": "\n".join(json.dumps(record, indent=1) for record in RECORDS).encode(),
    "a.jsonl.gz": gzip.compress(LINES),
    "members.ndjson.GZ": gzip.compress(LINES[:20]) + gzip.compress(LINES[20:]),
    "a.json.zst": zstd(json.dumps(RECORDS).encode()),
    "a.jsonl.zst": zstd(LINES),
    "a.parquet": parquet_of(text=TEXTS, id=[1, 2, 3]),
    "large.Parquet": parquet_of(text=pyarrow.array(TEXTS, pyarrow.large_string())),
    "words.parquet": parquet_of(text=pyarrow.array(TEXTS).dictionary_encode()),
}


@pytest.mark.parametrize("name", CORPORA)
@pytest.mark.parametrize("in_folder", [True, False])
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str, in_folder: bool) -> None:
    (tmp_path / name).write_bytes(CORPORA[name])
    assert texts(tmp_path if in_folder else tmp_path / name) == TEXTS


@pytest.mark.parametrize("name", ["a.txt.gz", "a.MD.zst", "a.txt", "no suffix", "no_suffix.gz"])
def test_a_text_file_is_one_document(tmp_path: Path, name: str) -> None:
    content = "naïve\n数\n".encode()
    packed = (
        gzip.compress(content) if name.endswith("gz") else zstd(content) if name.endswith("zst") else content
    )
    (tmp_path / name).write_bytes(packed)
    assert texts(tmp_path / name) == ["naïve\n数\n"]


@pytest.mark.parametrize("name", CORPORA)
def test_the_sizes_of_the_documents_add_up_to_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(CORPORA[name])
    sizes = [document.size for document in open_source(tmp_path / name).documents(lambda _: None)]
    assert min(sizes) >= 0
    assert 0.8 * len(CORPORA[name]) < sum(sizes) <= len(CORPORA[name])


def test_one_object_is_one_document(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"text": "one", "n": [1, {}]}, indent=4))
    assert texts(tmp_path / "a.json") == ["one"]


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_json_is_decoded_across_the_chunks_of_a_stream(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    values: list[Any] = [
        *RECORDS,
        {"text": "x" * 300, "flags": [True, False, None, -1.5e300]},
        {"é": "😀"},
    ]
    for content in (json.dumps(values, indent=1), "\n \n".join(map(json.dumps, values))):
        assert list(json_stream.JsonStream(io.BytesIO(content.encode()))) == values


DATABASE = sqlite3.connect(":memory:")
DATABASE.execute("create table texts (text)")


def archive(kind: str) -> bytes:
    stream = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(stream, "w") as packed:
            packed.writestr("a.txt", "text")
    else:
        with tarfile.open(fileobj=stream, mode="w") as packed:
            packed.addfile(tarfile.TarInfo("a.txt"))
    return stream.getvalue()


BINARIES = {
    "zip": (archive("zip"), "a zip archive"),
    "tar": (archive("tar"), "a tar archive"),
    "pickle": (pickle.dumps(TEXTS), "a pickle"),
    "sqlite": (DATABASE.serialize(), "an SQLite database"),
    "pdf": (b"%PDF-1.7\n", "a PDF document"),
    "png": (b"\x89PNG\r\n\x1a\n", "a PNG image"),
    "jpeg": (b"\xff\xd8\xff\xe0", "a JPEG image"),
    "zeros": (bytes(100), "binary data"),
    "bin": (b"text\0more", "binary data"),
}


@pytest.mark.parametrize("kind", BINARIES)
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json", "a.pdf", "no suffix"])
def test_binary_files_are_refused_by_what_they_are(tmp_path: Path, name: str, kind: str) -> None:
    content, what = BINARIES[kind]
    assert re.search(f"(it is|this is) {what}.*; extract its text", refused(tmp_path / name, content))
    assert what in refused(tmp_path / f"{name}.gz", gzip.compress(content))
    assert what in refused(tmp_path / f"{name}.parquet", content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", LINES, "its name says text, but it is JSON lines; rename it .* .jsonl,.*--suffixes .txt"),
        ("a.txt", b'{"text": "' + b"x" * 200_000, "its name says text, but it is JSON lines"),
        ("a.txt.gz", gzip.compress(LINES), "its name says text, but it is JSON lines"),
        ("corpus", LINES, "this is JSON lines; rename it to end in .jsonl"),
        ("a.jsonl", gzip.compress(LINES), "JSON lines, but it is gzip data; rename it to a.jsonl.gz"),
        ("a.json", zstd(LINES), "its name says JSON, but it is zstd data; rename it to a.json.zst"),
        ("a.jsonl", CORPORA["a.parquet"], "but it is a Parquet file; rename it to a.parquet"),
        ("a.parquet.gz", gzip.compress(CORPORA["a.parquet"]), "a Parquet file; decompress it to a.parquet"),
        ("a.jsonl.gz", LINES, "its name says gzip data, but it is not compressed"),
        ("a.jsonl.gz", zstd(LINES), "its name says gzip data, but it is zstd data"),
        ("a.jsonl.zst", b"", "its name says zstd data, but it is empty"),
        ("a.parquet", LINES, "its name says Parquet, but it is text"),
        ("a.parquet", b"", "its name says Parquet, but it is empty"),
        ("a.txt", "text".encode("utf-16"), "UTF-16 text; convert it to UTF-8"),
        ("a.csv", b"id,text\n", r"the suffix .csv is unknown; convert the file to .jsonl.* --suffixes .csv"),
        ("a.html", b"<html>", "the suffix .html is unknown"),
        ("a.TSV.gz", gzip.compress(b"id\ttext\n"), "the suffix .tsv is unknown"),
        ("a.tar.gz", gzip.compress(archive("tar")), "a tar archive"),
        ("a.log", LINES, "this is JSON lines; rename it to end in .jsonl"),
    ],
)  # fmt: skip
def test_a_file_that_is_not_what_its_name_says_is_refused(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    assert re.search(message, refused(tmp_path / name, content))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"plain text", ":1: not JSON .Expecting value at column 1"),
        ("a.json", b'{"text": "x"}\n{"text": "cut', ":2: not JSON .Unterminated string"),
        ("a.json", b'[{"text": "x"},\n {"text": "y"}', ":2: not JSON .the array does not end at column 15"),
        ("a.json", b'[{"text": "x"}\n {"text": "y"}]', ":2: not JSON .Expecting ',' or ']'"),
        ("a.json", b'[{"text": "x"},\n]', ":2: not JSON .Expecting value after ','"),
        ("a.json", b'[{"text": "x"}]\n\n[]', ":3: not JSON .text after the end of the array"),
        ("a.json", b'[{"text": "x"},\n\n"y"]', ":3: not a JSON object but of type string"),
        ("a.json", b'{"text": "x"}\n\n{"other": 1}', r":3: key 'text' is missing.*found: other"),
        ("a.json", b'{"text": "x"}\n{"text": "\xff"}', ":2: not UTF-8"),
        ("a.json", b"[" * 100_000, ":1: not JSON that Python can read"),
        ("a.jsonl.gz", gzip.compress(LINES + b"bad\n"), ":4: not JSON"),
        ("a.parquet", parquet_of(other=["x"]), "column 'text' is missing; .*--key .found: other"),
        ("a.parquet", parquet_of(text=[1]), "column 'text' is of type int64, not string"),
        ("a.parquet", parquet_of(text=["a", "b", "c", None]), ", row 4: 'text' is null"),
    ],
)
def test_a_mistake_names_its_line_or_row(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    assert re.search(re.escape(name) + ".*" + message, refused(tmp_path / name, content))


def test_a_row_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    raw = pyarrow.array([b"good", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    assert ", row 2: 'text' is not UTF-8" in refused(tmp_path / "a.parquet", parquet_of(text=raw))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, cut) for name in ("a.jsonl.gz", "a.jsonl.zst", "a.parquet") for cut in ("half", "one byte")),
        ("a.jsonl.gz", "changed"),  # pyarrow writes zstd without a checksum
        ("a.parquet", "changed"),
    ],
)
def test_damage_is_reported_in_one_message(tmp_path: Path, name: str, damage: str) -> None:
    content = bytearray(CORPORA[name])
    if damage == "changed":
        content[len(content) // 2 if name != "a.parquet" else 30] ^= 255
    cut = {"half": len(content) // 2, "one byte": len(content) - 1, "changed": len(content)}[damage]
    message = refused(tmp_path / name, bytes(content[:cut]))
    assert "damaged or truncated" in message
    assert "copy or download it again" in message


def test_all_wrong_files_of_a_folder_are_reported_before_the_first_document(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:02}.txt").write_bytes(b"%PDF-1.7\n")
    (tmp_path / "0.txt").write_text("good")
    documents = open_source(tmp_path).documents(lambda _: None)
    with pytest.raises(UserError) as refusal:
        next(documents)
    *first, last = refusal.value.problems
    assert len(first) == 10
    assert str(last) == "and 2 more such file(s)"


def test_listed_suffixes_are_text_unless_they_are_binary(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text")
    (tmp_path / "b.txt").write_bytes(LINES)
    assert texts(tmp_path, suffixes=(".csv", ".txt")) == ["id,text", LINES.decode()]
    assert "a PDF document" in refused(tmp_path / "a.docx", b"%PDF-1.7\n", suffixes=(".docx",))


@pytest.fixture
def broken_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def break_it() -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(pyarrow, "CompressedInputStream", fail)
        monkeypatch.setattr(parquet, "ParquetFile", fail)

    return break_it


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
def test_an_error_of_the_disk_is_not_called_damage(
    tmp_path: Path, broken_disk: Callable[[], None], name: str
) -> None:
    (tmp_path / name).write_bytes(CORPORA[name])
    broken_disk()
    with pytest.raises(OSError, match="Input/output error"):
        texts(tmp_path / name)
