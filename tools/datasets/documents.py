"""Read text as a stream of documents from the standard library, a folder or a file.

The order is the same on every call, so a number identifies a document.
"""

import hashlib
import platform
import sys
import sysconfig
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from flagscale.errors import Problem, UserError
from tools.datasets.formats import RECORD_SUFFIXES, TEXT, TEXT_SUFFIXES, Format, by_name, split_name
from tools.datasets.readers import Document, check, read

# Folders that would teach a model little: tests (two thirds of the library), an editor, character tables,
# demos, and packages that not every Python has. The rest is about 9 MB, or 2 million tokens.
_STANDARD_LIBRARY_EXCLUDED = {
    "site-packages", "dist-packages", "test", "tests",
    "idlelib", "turtledemo", "encodings", "ensurepip", "lib2to3",
}  # fmt: skip
# Holds the variables of the machine that built this Python.
_MACHINE_VARIABLES = "_sysconfigdata"
_MOST_PROBLEMS, _MOST_SUFFIXES = 10, 5


@dataclass(frozen=True)
class Source:
    """A fixed list of files: a document per text file, JSON object or Parquet row; blank ones are skipped."""

    name: str
    root: Path
    files: tuple[Path, ...]
    key: str = "text"
    version: str = ""
    """Identifies the content if modification times do not, as in a reinstalled Python."""
    suffixes: tuple[str, ...] | None = None
    """Suffixes of text files, if the user listed them."""
    unread: Counter[str] = field(default_factory=Counter)
    """Number of files in the folder that are not part of the source, for each suffix."""

    def size(self) -> int:
        """Return the total size of all files in bytes."""
        return sum(file.stat().st_size for file in self.files)

    def fingerprint(self) -> str:
        """Return a hash that changes if a file is added, removed or written, but not if the folder moves."""
        digest = hashlib.sha256(repr((self.key, self.version)).encode())
        for file in self.files:
            stat = file.stat()
            written = 0 if self.version else stat.st_mtime_ns
            name, form = file.relative_to(self.root).as_posix(), self.form(file).content
            digest.update(repr((name, form, stat.st_size, written)).encode())
        return digest.hexdigest()

    def form(self, file: Path) -> Format:
        """Return the format that the name of one of the files stands for."""
        return by_name(file, self.suffixes) or Format(TEXT, split_name(file)[1])

    def documents(self, on_skip: Callable[[Path], None]) -> Iterator[Document]:
        """Yield all documents in order; call `on_skip` with each file that is not UTF-8 text.

        Raises UserError, before the first document, for all files whose content is not what their name says.
        """
        checked = (check(file, self.form(file), listed=self.suffixes is not None) for file in self.files)
        if wrong := [Problem(what) for what in checked if what]:
            raise UserError(wrong[:_MOST_PROBLEMS] + _and_more(len(wrong) - _MOST_PROBLEMS))
        found, skipped = False, 0
        for file in self.files:
            try:
                for document in read(file, self.form(file), self.key):
                    found = True
                    yield document
            except UnicodeDecodeError:
                skipped += 1
                on_skip(file)
        if not found:
            why = f" ({skipped} not UTF-8)" if skipped else ""
            raise UserError(
                f"{self.name}: no text in {len(self.files)} file(s){why}; choose another --source"
            )


def _and_more(count: int) -> list[Problem]:
    return [Problem(f"and {count} more such file(s)")] if count > 0 else []


def standard_library() -> Source:
    """Return the source and docs of the running Python's own library: real text that every machine has."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [
        file
        for file in _files(root, TEXT_SUFFIXES)
        if not _STANDARD_LIBRARY_EXCLUDED.intersection(file.relative_to(root).parts[:-1])
        and not file.name.startswith(_MACHINE_VARIABLES)
    ]
    return Source("Python standard library", root, tuple(files), version=platform.python_version())


def open_source(path: Path | None, *, key: str = "text", suffixes: tuple[str, ...] | None = None) -> Source:
    """Return the source at a path: a folder or a file; `None` is the standard library.

    Args:
        suffixes: of text files; default: `TEXT_SUFFIXES`.
    """
    if path is None:
        return standard_library()
    if suffixes is not None:
        suffixes = tuple(f".{suffix.lower().removeprefix('.')}" for suffix in suffixes)
    if path.is_file():
        has_unknown_suffix = split_name(path)[0] and by_name(path, suffixes) is None
        if has_unknown_suffix and (wrong := check(path, None, listed=False)):
            raise UserError(wrong)
        return Source(str(path), path.parent, (path,), key, suffixes=suffixes)
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder; --source takes a folder or a file")
    present = _files(path)
    known = tuple(file for file in present if by_name(file, suffixes))
    unread = Counter(file.suffix or "no suffix" for file in present if not by_name(file, suffixes))
    if not known:
        ends = ", ".join((*(suffixes or TEXT_SUFFIXES), *RECORD_SUFFIXES))
        raise UserError(f"{path}: no file ends in {ends}{_listed(unread)}; name others with --suffixes")
    return Source(str(path), path, known, key, suffixes=suffixes, unread=unread)


def _files(root: Path, suffixes: tuple[str, ...] | None = None) -> list[Path]:
    """Return the files below `root` (with these suffixes) in a fixed order, without hidden ones."""
    return sorted(
        file
        for file in root.rglob("*")
        if (suffixes is None or file.suffix in suffixes)
        and not any(part.startswith(".") for part in file.relative_to(root).parts)
        and file.is_file()
    )


def add_arguments(parser: ArgumentParser) -> None:
    """Add the arguments of every tool that reads text."""
    parser.add_argument(
        "--source",
        type=Path,
        help="folder or file: text, .jsonl, .ndjson, .json (each also .gz or .zst), or .parquet "
        "(default: the standard library)",
    )
    parser.add_argument(
        "--key",
        default="text",
        help="key of the text in a JSON object, column in a Parquet file (default: %(default)s)",
    )
    parser.add_argument(
        "--suffixes",
        nargs="+",
        help=f"suffixes of files to read as plain text (default: {' '.join(TEXT_SUFFIXES)})",
    )


def source_of(arguments: Namespace) -> Source:
    """Return the source that the arguments of `add_arguments` describe; print which files it leaves out."""
    suffixes = None if arguments.suffixes is None else tuple(arguments.suffixes)
    source = open_source(arguments.source, key=arguments.key, suffixes=suffixes)
    if source.unread:
        print(
            f"{source.name}: {source.unread.total()} file(s) are not read{_listed(source.unread)}; "
            "name a suffix with --suffixes to read it as text",
            file=sys.stderr,
        )
    return source


def _listed(unread: Counter[str]) -> str:
    """Return the number of files for each suffix in parentheses, the most frequent first."""
    if not unread:
        return ""
    most = ", ".join(f"{count} {suffix}" for suffix, count in unread.most_common(_MOST_SUFFIXES))
    return f" ({most}{', ...' if len(unread) > _MOST_SUFFIXES else ''})"


def skipped_notice(skipped: list[Path]) -> str:
    """Return one line that lists the files that were not UTF-8 text."""
    first = ", ".join(str(file) for file in skipped[:3])
    return f"skipped {len(skipped)} file(s), not UTF-8 text: {first}{', ...' if len(skipped) > 3 else ''}"
