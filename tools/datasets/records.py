"""Read records from JSON, JSON lines or Parquet as a stream; each knows its line or row."""

import hashlib
from collections.abc import Iterator
from os.path import realpath
from pathlib import Path
from typing import Any, NamedTuple

from flagscale.errors import Problem, UserError
from tools.datasets import formats
from tools.datasets.formats import RECORD_SUFFIXES, Format, by_name
from tools.datasets.json_stream import JsonStream, NotJsonError
from tools.datasets.readers import check, filled_lines, json_value, opened, parquet_rows


class Record(NamedTuple):
    """One value of a source file: its place (`file:line`), and the bytes that were read for it."""

    where: str
    value: Any
    size: int


def source_files(paths: list[Path]) -> list[tuple[Path, Format]]:
    """Return the files at these paths (of a folder: those directly in it) with their formats.

    Raises:
        UserError: with every file that is missing, or is not what its name says.
    """
    found, problems = [], []
    for path in paths:
        files = [path] if path.is_file() else _files_in(path)
        if not files:
            what = "no file ends in" if path.is_dir() else "no such file or folder; --source takes"
            problems.append(Problem(f"{what} {', '.join(RECORD_SUFFIXES)}", str(path)))
        for file in files:
            form = _format(file)
            if form is None:
                problems.append(Problem(f"not one of {', '.join(RECORD_SUFFIXES)}", str(file)))
                continue
            try:
                wrong = check(file, form, listed=True)
                problems += [Problem(wrong)] if wrong else []
            except UserError as error:  # it cannot be decompressed
                problems += error.problems
            found.append((file, form))
    if problems:
        raise UserError(problems)
    return found


def content_of(files: list[tuple[Path, Format]]) -> str:
    """Return a hash that changes if a file is written, but not if the folder moves."""
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file, _ in files]
    return hashlib.sha256(repr(stats).encode(errors="surrogatepass")).hexdigest()


def bytes_of(files: list[tuple[Path, Format]]) -> int:
    """Return the total size of all files."""
    return sum(file.stat().st_size for file, _ in files)


def check_apart(source: list[Path], output: Path) -> None:
    """Raise UserError if the output is a folder of the source: its facts would be read as records."""
    if any(realpath(output) == realpath(path) for path in source if path.is_dir()):
        raise UserError(f"--output {output}: is the source; its facts would be read as conversations")


def _files_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if _format(file) and file.is_file())


def _format(file: Path) -> Format | None:
    form = by_name(file, None)
    return form if form and form.content != formats.TEXT else None


def records(file: Path, form: Format) -> Iterator[Record | Problem]:
    """Yield the values of a file in order, or what is wrong at a place.

    A file that is damaged, or an array that is not JSON, cannot be read beyond that place.
    """
    try:
        if form.content == formats.PARQUET:
            for number, (row, size) in enumerate(parquet_rows(file), 1):
                yield Record(f"{file}, row {number}", row, size)
            return
        with opened(file, form.compression) as (stream, position):
            values = _values if form.content == formats.JSON else _lines
            before = 0
            for place, value in values(stream):
                where, now = f"{file}:{place}", position()
                is_wrong = isinstance(value, ValueError)
                yield Problem(str(value), where) if is_wrong else Record(where, value, now - before)
                before = now
    except UserError as error:
        yield from error.problems


def _lines(stream: Any) -> Iterator[tuple[int | str, Any]]:
    """Yield each line's number and value, or the ValueError that says what is wrong with it."""
    for number, line in filled_lines(stream):
        try:
            yield number, json_value(line)
        except ValueError as error:
            yield number, error


def _values(stream: Any) -> Iterator[tuple[int | str, Any]]:
    """Yield each value with its line and its number, because whole files are often on one line."""
    values = JsonStream(stream)
    try:
        for number, value in enumerate(values, 1):
            yield f"{values.line}, item {number}", value
    except NotJsonError as error:
        yield error.line, error
