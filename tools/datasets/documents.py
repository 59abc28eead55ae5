"""Read text as a stream of documents from the standard library, a folder, a `.jsonl` file or a text file.

The order is the same on every call, so a number identifies a document.
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

# Folders that would teach a model little: tests (two thirds of the library), an editor, character tables,
# demos, and packages that not every Python has. The rest is about 9 MB, or 2 million tokens.
_STANDARD_LIBRARY_EXCLUDED = {
    "site-packages", "dist-packages", "test", "tests",
    "idlelib", "turtledemo", "encodings", "ensurepip", "lib2to3",
}  # fmt: skip
# Holds the variables of the machine that built this Python.
_MACHINE_VARIABLES = "_sysconfigdata"


class Document(NamedTuple):
    """One document, and its size in the file in bytes, by which progress is measured."""

    text: str
    size: int


@dataclass(frozen=True)
class Source:
    """A fixed list of files: one document per file, or per line of `.jsonl`; blank documents are skipped."""

    name: str
    root: Path
    files: tuple[Path, ...]
    key: str = "text"
    version: str = ""
    """Identifies the content if modification times do not, as in a reinstalled Python."""

    def size(self) -> int:
        """Return the total size of all files in bytes."""
        return sum(file.stat().st_size for file in self.files)

    def fingerprint(self) -> str:
        """Return a hash that changes if a file is added, removed or written, but not if the folder moves."""
        digest = hashlib.sha256(repr((self.key, self.version)).encode())
        for file in self.files:
            stat = file.stat()
            written = 0 if self.version else stat.st_mtime_ns
            digest.update(repr((file.relative_to(self.root).as_posix(), stat.st_size, written)).encode())
        return digest.hexdigest()

    def documents(self, on_skip: Callable[[Path], None]) -> Iterator[Document]:
        """Yield all documents in order; call `on_skip` with each file that is not UTF-8 text."""
        found = False
        for file in self.files:
            try:
                for document in self._lines(file) if file.suffix == ".jsonl" else _whole(file):
                    found = True
                    yield document
            except UnicodeDecodeError:
                on_skip(file)
        if not found:
            raise UserError(f"{self.name}: no text in {len(self.files)} file(s); choose another --source")

    def _lines(self, file: Path) -> Iterator[Document]:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    text = _text_of(line, self.key)
                except ValueError as error:
                    raise UserError(f"{file}:{number}: {error}; fix or remove this line") from None
                if text.strip():
                    yield Document(text, len(line))


def _whole(file: Path) -> Iterator[Document]:
    content = file.read_bytes()
    text = content.decode("utf-8-sig")
    if text.strip():
        yield Document(text, len(content))


def _text_of(line: bytes, key: str) -> str:
    """Return the text of one JSON line; raise ValueError, which says what is wrong with the line."""
    try:
        record = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not JSON that Python can read (nested too deeply)") from None
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object but a {type(record).__name__}")
    if key not in record:
        raise ValueError(
            f"key {key!r} is missing; choose another with --key (found: {', '.join(record) or 'none'})"
        )
    text = record[key]
    if not isinstance(text, str):
        raise ValueError(f"the value of {key!r} is not a string but of type {type(text).__name__}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"the value of {key!r} contains half of a surrogate pair, which is not a character"
        ) from None
    return text


def standard_library() -> Source:
    """Return the source and docs of the running Python's own library: real text that every machine has."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        file
        for file in _text_files(root, TEXT_SUFFIXES)
        if not _STANDARD_LIBRARY_EXCLUDED.intersection(file.relative_to(root).parts[:-1])
        and not file.name.startswith(_MACHINE_VARIABLES)
    ]
    return Source("Python standard library", root, tuple(files), version=platform.python_version())


def open_source(path: Path | None, *, key: str = "text", suffixes: tuple[str, ...] = TEXT_SUFFIXES) -> Source:
    """Return the source at a path: a folder, a `.jsonl` or text file; `None` is the standard library."""
    if path is None:
        return standard_library()
    if path.is_file():
        return Source(str(path), path.parent, (path,), key)
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; --source takes a folder, a .jsonl or text file")
    files = _text_files(path, (*suffixes, ".jsonl"))
    if not files:
        raise UserError(
            f"{path}: no file ends in {', '.join(suffixes)} or .jsonl; choose others with --suffixes"
        )
    return Source(str(path), path, tuple(files), key)


def _text_files(root: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Return the files below `root` in a fixed order, without hidden ones."""
    return sorted(
        file
        for file in root.rglob("*")
        if file.suffix in suffixes
        and not any(part.startswith(".") for part in file.relative_to(root).parts)
        and file.is_file()
    )


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of every tool that reads text."""
    parser.add_argument(
        "--source", type=Path, help="folder, .jsonl file or text file (default: the standard library)"
    )
    parser.add_argument(
        "--key", default="text", help="key of the text in a .jsonl line (default: %(default)s)"
    )
    parser.add_argument(
        "--suffixes",
        nargs="+",
        default=TEXT_SUFFIXES,
        help=f"suffixes of the text files in a folder (default: {' '.join(TEXT_SUFFIXES)})",
    )


def source_of(arguments: Namespace) -> Source:
    """Return the source that the arguments of `add_arguments` describe."""
    return open_source(arguments.source, key=arguments.key, suffixes=tuple(arguments.suffixes))


def skipped_notice(skipped: list[Path]) -> str:
    """Return one line that lists the files that were not UTF-8 text."""
    first = ", ".join(str(file) for file in skipped[:3])
    return f"skipped {len(skipped)} file(s), not UTF-8 text: {first}{', ...' if len(skipped) > 3 else ''}"
