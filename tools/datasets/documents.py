"""Where text comes from: the standard library, a folder, a `.jsonl` or a text file, as a stream of documents.

The order is the same on every call, so that a document's number names it.
"""

import hashlib
import json
import platform
import sysconfig
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from flagscale.errors import UserError

TEXT_SUFFIXES = (".py", ".txt", ".rst", ".md")

# What would teach a model little: tests (two thirds of the library), an editor, character tables,
# demos, and what is not everywhere. What stays is about 9 MB, 2 million tokens.
_STANDARD_LIBRARY_EXCLUDED = {
    "site-packages", "dist-packages", "test", "tests",
    "idlelib", "turtledemo", "encodings", "ensurepip", "lib2to3",
}  # fmt: skip
# The variables of the machine that built this Python.
_MACHINE_VARIABLES = "_sysconfigdata"


class Document(NamedTuple):
    """One document and the bytes that it took in its file, by which progress is measured."""

    text: str
    size: int


@dataclass(frozen=True)
class Source:
    """A fixed list of files, each one a document or (`.jsonl`) a document a line; blank ones are left out."""

    name: str
    root: Path
    files: tuple[Path, ...]
    key: str = "text"
    version: str = ""
    """Stands for the content where modification times say nothing, as in a reinstalled Python."""

    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)

    def fingerprint(self) -> str:
        """Changes when a file is added, removed, resized or written; not when the whole folder is moved."""
        digest = hashlib.sha256(repr((self.key, self.version)).encode())
        for file in self.files:
            stat = file.stat()
            written = 0 if self.version else stat.st_mtime_ns
            digest.update(repr((file.relative_to(self.root).as_posix(), stat.st_size, written)).encode())
        return digest.hexdigest()

    def documents(self, on_skip: Callable[[Path], None]) -> Iterator[Document]:
        """All documents in order; `on_skip` is told of each file that is not UTF-8 text."""
        found = False
        for file in self.files:
            try:
                for document in self._lines(file) if file.suffix == ".jsonl" else _whole(file):
                    found = True
                    yield document
            except UnicodeDecodeError:
                on_skip(file)
        if not found:
            raise UserError(f"{self.name}: no text in {len(self.files)} file(s); name another --source")

    def _lines(self, file: Path) -> Iterator[Document]:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    text = _text_of(line, self.key)
                except ValueError as error:
                    raise UserError(f"{file}:{number}: {error}; mend or remove this line") from None
                if text.strip():
                    yield Document(text, len(line))


def _whole(file: Path) -> Iterator[Document]:
    content = file.read_bytes()
    text = content.decode("utf-8-sig")
    if text.strip():
        yield Document(text, len(content))


def _text_of(line: bytes, key: str) -> str:
    """The text of one JSON line; ValueError says what is wrong with the line."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not JSON that can be read (nested too deep)") from None
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object but {type(record).__name__}")
    if key not in record:
        raise ValueError(f"no key {key!r} (--key names another; it has {', '.join(record) or 'none'})")
    text = record[key]
    if not isinstance(text, str):
        raise ValueError(f"{key!r} is not a string but {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{key!r} holds half of a surrogate pair, which is no character") from None
    return text


def standard_library() -> Source:
    """The source and docs of the running Python's own library: real text that is found on every machine."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        file
        for file in _text_files(root, TEXT_SUFFIXES)
        if not _STANDARD_LIBRARY_EXCLUDED.intersection(file.relative_to(root).parts[:-1])
        and not file.name.startswith(_MACHINE_VARIABLES)
    ]
    return Source("Python standard library", root, tuple(files), version=platform.python_version())


def open_source(path: Path | None, *, key: str = "text", suffixes: tuple[str, ...] = TEXT_SUFFIXES) -> Source:
    """The source that the user names: a folder, a `.jsonl` or text file; `None` is the standard library."""
    if path is None:
        return standard_library()
    if path.is_file():
        return Source(str(path), path.parent, (path,), key)
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; --source takes a folder, a .jsonl or a text file")
    files = _text_files(path, (*suffixes, ".jsonl"))
    if not files:
        raise UserError(f"{path}: no file ends in {', '.join(suffixes)} or .jsonl; --suffixes names others")
    return Source(str(path), path, tuple(files), key)


def _text_files(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Files below `root` in a fixed order, without hidden ones."""
    return sorted(
        file
        for file in root.rglob("*")
        if file.suffix in suffixes
        and not any(part.startswith(".") for part in file.relative_to(root).parts)
        and file.is_file()
    )


def add_arguments(parser: ArgumentParser) -> None:
    """The arguments of every command line that reads text."""
    parser.add_argument(
        "--source", type=Path, help="folder, .jsonl or text file (default: the standard library)"
    )
    parser.add_argument(
        "--key", default="text", help="key of the text in a .jsonl line (default: %(default)s)"
    )
    parser.add_argument(
        "--suffixes",
        nargs="+",
        default=TEXT_SUFFIXES,
        help=f"text files of a folder (default: {' '.join(TEXT_SUFFIXES)})",
    )


def source_of(arguments: Namespace) -> Source:
    """The source that `add_arguments` describes."""
    return open_source(arguments.source, key=arguments.key, suffixes=tuple(arguments.suffixes))


def skipped_notice(skipped: list[Path]) -> str:
    """One line on the files that were not UTF-8 text."""
    first = ", ".join(str(file) for file in skipped[:3])
    return f"{len(skipped)} file(s) skipped, not UTF-8 text: {first}{', ...' if len(skipped) > 3 else ''}"
