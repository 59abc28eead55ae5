"""Read the documents of one corpus file in any format, as a stream; each mistake names its line or row."""

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
_ROWS = 1024  # of a Parquet file, read at once


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
    for number, line in enumerate(stream, 1):
        if line.strip():
            try:
                yield _text_of(_record(line), key)
            except ValueError as error:
                raise UserError(f"{file}:{number}: {error}; fix or remove this line") from None


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
    """Yield the texts of a column of strings; the file's bytes are shared evenly among its rows."""
    import pyarrow
    from pyarrow import parquet

    size = file.stat().st_size
    try:
        with parquet.ParquetFile(file, page_checksum_verification=True) as table:
            _check_column(file, table.schema_arrow, key)
            rows = table.metadata.num_rows
            batches = table.iter_batches(batch_size=_ROWS, columns=[key])
            values = (value for batch in batches for value in batch.column(0))
            for number, value in enumerate(values, 1):
                text = _text_of_row(file, number, value, key)
                if text.strip():
                    yield Document(text, size * number // rows - size * (number - 1) // rows)
    except (pyarrow.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        raise UserError(_damaged(file, "Parquet file", error)) from None


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


def _record(line: bytes) -> Any:
    """Return the value of one JSON line; raise ValueError, which says what is wrong with the line."""
    try:
        return json.loads(line.decode("utf-8-sig"))
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
