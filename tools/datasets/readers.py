"""Read the documents of one corpus file in any format, as a stream; each mistake names its line or row."""

import codecs
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from flagscale.errors import UserError
from tools.datasets import formats
from tools.datasets.formats import Format
from tools.datasets.json_stream import JsonStream, NotJsonError

_BUFFER = 1 << 20
_SIGNATURE = 16
_FIX_OBJECT = "fix this place, or list .json in --suffixes to read such files as plain text"
_ROWS, _LARGE_ROWS = 1024, 16  # of a Parquet file, read at once: texts, and rows with pictures


class Document(NamedTuple):
    """One document, and the bytes of its file that were read for it, by which progress is measured."""

    text: str
    size: int


def check(file: Path, form: Format | None, *, listed: bool) -> str | None:
    """Return why the file cannot be read; None if its first bytes are what its name says."""
    with file.open("rb") as raw:
        if wrong := formats.compression_refusal(file, raw.read(_SIGNATURE)):
            return wrong
    _, compression = formats.split_name(file)
    with opened(file, compression) as (stream, _):
        return formats.refusal(file, form, stream.read(formats.HEAD), listed=listed)


def read(file: Path, form: Format, key: str) -> Iterator[Document]:
    """Yield the documents of a file in order, blank ones left out.

    Raises UnicodeDecodeError if a text file is not UTF-8, and UserError for any other mistake.
    """
    if form.content == formats.PARQUET:
        yield from _rows(file, key)
        return
    with opened(file, form.compression) as (stream, position):
        before = 0
        for text in _TEXTS[form.content](file, stream, key):
            if text.strip():
                yield Document(text, position() - before)
                before = position()


@contextmanager
def opened(file: Path, compression: str | None) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """Open a file to read its decompressed bytes, and the number of bytes of the file read so far."""
    with file.open("rb") as raw:
        if compression is None:
            yield raw, raw.tell
            return
        import pyarrow

        try:
            with pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), compression) as stream:
                yield io.BufferedReader(stream, _BUFFER), raw.tell
        except OSError as error:
            if error.errno is not None:  # not the data, but the disk
                raise
            raise UserError(_damaged(file, f"{compression} data", error)) from None


def _whole(file: Path, stream: BinaryIO, key: str) -> Iterator[str]:
    yield stream.read().decode("utf-8-sig")


def _lines(file: Path, stream: BinaryIO, key: str) -> Iterator[str]:
    for number, line in filled_lines(stream):
        try:
            yield _text_of(json_value(line), key)
        except ValueError as error:
            raise UserError(f"{file}:{number}: {error}; fix or remove this line") from None


def filled_lines(stream: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield each line that is not blank, with its number; a byte order mark alone is blank, too."""
    for number, line in enumerate(stream, 1):
        if line.removeprefix(codecs.BOM_UTF8).strip():
            yield number, line


def _values(file: Path, stream: BinaryIO, key: str) -> Iterator[str]:
    values = JsonStream(stream)
    try:
        for value in values:
            yield _text_of(value, key)
    except ValueError as error:
        line = error.line if isinstance(error, NotJsonError) else values.line
        raise UserError(f"{file}:{line}: {error}; {_FIX_OBJECT}") from None


_TEXTS = {formats.TEXT: _whole, formats.LINES: _lines, formats.JSON: _values}


def _rows(file: Path, key: str) -> Iterator[Document]:
    """Yield the texts of a column of strings."""
    with _table(file) as table:
        _check_column(file, table.schema_arrow, key)
        for number, (row, size) in enumerate(_values_of(table, file, _ROWS, [key]), 1):
            text = _text_of_row(file, number, row[0], key)
            if text.strip():
                yield Document(text, size)


def parquet_rows(file: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each row of a Parquet file as a dict, with its share of the file's bytes.

    Raises:
        UserError: the file is damaged, or a text in it is not UTF-8.
    """
    with _table(file) as table:
        names = table.schema_arrow.names
        for number, (row, size) in enumerate(_values_of(table, file, _LARGE_ROWS, names), 1):
            try:
                values = {name: value.as_py() for name, value in zip(names, row, strict=True)}
            except UnicodeDecodeError as error:
                raise UserError(f"{file}, row {number}: not UTF-8 ({error.reason}); fix this row") from None
            yield values, size


@contextmanager
def _table(file: Path) -> Iterator[Any]:
    """Open a Parquet file; report one that is damaged, now or while it is read."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file, page_checksum_verification=True) as table:
            yield table
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise UserError(_damaged(file, "Parquet file", error)) from None


def _values_of(
    table: Any, file: Path, batch_size: int, columns: list[str]
) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Yield the values of each row; the file's bytes are shared evenly among its rows."""
    size, rows, number = file.stat().st_size, table.metadata.num_rows, 0
    for batch in table.iter_batches(batch_size=batch_size, columns=columns):
        for row in zip(*batch.columns, strict=True):
            number += 1
            yield row, size * number // rows - size * (number - 1) // rows


def _check_column(file: Path, schema: Any, key: str) -> None:
    from pyarrow import types

    if key not in schema.names:
        found = ", ".join(schema.names) or "none"
        raise UserError(f"{file}: column {key!r} is missing; choose another with --key (found: {found})")
    kind = schema.field(key).type
    if types.is_dictionary(kind):
        kind = kind.value_type
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
        raise UserError(f"{file}: column {key!r} is of type {kind}, not string; choose another with --key")


def _text_of_row(file: Path, number: int, value: Any, key: str) -> str:
    try:
        text = value.as_py()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file}, row {number}: {key!r} is not UTF-8 ({error.reason}); fix this row"
        ) from None
    if text is None:
        raise UserError(f"{file}, row {number}: {key!r} is null; remove this row")
    return str(text)


_JSON_TYPES = {str: "string", list: "array", dict: "object", bool: "boolean", type(None): "null"}


def json_value(line: bytes) -> Any:
    """Return the value of one JSON line; raise ValueError, which says what is wrong with the line."""
    try:
        return json.loads(line.rstrip().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error.reason} at byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not JSON that Python can read (nested too deeply)") from None


def _text_of(record: Any, key: str) -> str:
    """Return the text of a JSON object; raise ValueError, which says what is wrong with it."""
    if not isinstance(record, dict):
        raise ValueError(f"not a JSON object but of type {_JSON_TYPES.get(type(record), 'number')}")
    if key not in record:
        raise ValueError(
            f"key {key!r} is missing; choose another with --key (found: {', '.join(record) or 'none'})"
        )
    text = record[key]
    if not isinstance(text, str):
        raise ValueError(
            f"the value of {key!r} is not a string but of type {_JSON_TYPES.get(type(text), 'number')}"
        )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"the value of {key!r} contains half of a surrogate pair, which is not a character"
        ) from None
    return text


def _damaged(file: Path, kind: str, error: Exception) -> str:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{file}: damaged or truncated {kind} ({first.rstrip('.')}); copy or download it again"
