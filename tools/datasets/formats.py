"""Recognise the format of a corpus file by its name and its content; refuse a file if they disagree."""

import json
from dataclasses import dataclass
from pathlib import Path

TEXT, LINES, JSON, PARQUET = "text", "JSON lines", "JSON", "Parquet"
TEXT_SUFFIXES = (".py", ".txt", ".rst", ".md")
"""Suffixes of text files if the user names none."""

HEAD = 1 << 16
"""Bytes of a file that show its format."""

_RECORDS = {".jsonl": LINES, ".ndjson": LINES, ".json": JSON, ".parquet": PARQUET}
RECORD_SUFFIXES = tuple(_RECORDS)
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_GZIP, _ZSTD = "gzip data", "zstd data"
_SUFFIX_OF = {_GZIP: ".gz", _ZSTD: ".zst"}
_UTF16 = "UTF-16 text"

# What a file begins with, or contains at an offset, and what it is.
_SIGNATURES = (
    (0, b"\x1f\x8b", _GZIP),
    (0, b"\x28\xb5\x2f\xfd", _ZSTD),
    (0, b"PAR1", PARQUET),
    (0, b"PK\x03\x04", "a zip archive (.docx, .xlsx and .npz files are such archives too)"),
    (0, b"BZh91AY&SY", "bzip2 data"),
    (0, b"\xfd7zXZ\x00", "xz data"),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (0, b"\x04\x22\x4d\x18", "lz4 data"),
    (257, b"ustar", "a tar archive"),
    (0, b"%PDF-", "a PDF document"),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Microsoft Office document"),
    (0, b"{\\rtf", "an RTF document"),
    (0, b"SQLite format 3\x00", "an SQLite database"),
    (0, b"ARROW1", "an Arrow file"),
    (0, b"\x89HDF\r\n", "an HDF5 file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"MMIDIDX", "the index of data that is tokenized already"),
    (0, b"\x89PNG", "a PNG image"),
    (0, b"\xff\xd8\xff", "a JPEG image"),
    (0, b"GIF8", "a GIF image"),
    (0, b"\x7fELF", "a program"),
    *((0, bytes([0x80, version]), "a pickle") for version in range(2, 6)),
    (0, b"\xff\xfe", _UTF16),
    (0, b"\xfe\xff", _UTF16),
)


@dataclass(frozen=True)
class Format:
    """What a file contains, and how it is compressed (`gzip`, `zstd` or not at all)."""

    content: str
    compression: str | None = None


def split_name(path: Path) -> tuple[str, str | None]:
    """Return the suffix of a file below that of its compression, in lower case, and its compression."""
    name = Path(path.name.lower())
    compression = _COMPRESSIONS.get(name.suffix)
    return (name.with_suffix("") if compression else name).suffix, compression


def by_name(path: Path, suffixes: tuple[str, ...] | None) -> Format | None:
    """Return the format that the name stands for, whatever its case; None if the suffix is unknown.

    Args:
        suffixes: of text files, as the user listed them; they include `.json` if its raw text is wanted.
    """
    suffix, compression = split_name(path)
    is_text = suffix in (suffixes or TEXT_SUFFIXES)
    content = _RECORDS.get(suffix)
    if content is None or (content == JSON and is_text):
        return Format(TEXT, compression) if is_text else None
    if content == PARQUET and compression:
        return None
    return Format(content, compression)


def compression_refusal(path: Path, start: bytes) -> str | None:
    """Return why a file that starts with these bytes is not compressed as its name says; None if it is."""
    _, compression = split_name(path)
    kind = _signature(start)
    if compression is None or kind == f"{compression} data":
        return None
    found = kind or ("not compressed" if start else "empty")
    return f"{path}: its name says {compression} data, but it is {found}; give it the suffix of its content"


def refusal(path: Path, form: Format | None, head: bytes, *, listed: bool) -> str | None:
    """Return why a file cannot be read; None if its name and its content agree.

    Args:
        form: as the name says; None if its suffix is unknown.
        head: the first `HEAD` bytes, decompressed.
        listed: whether the user listed the suffixes of text files.
    """
    suffix, compression = split_name(path)
    says = f"{path}: its name says {form.content}, but it is" if form and suffix else f"{path}: this is"
    stem = path.stem if suffix or compression else path.name
    kind = _signature(head) or ("binary data" if b"\0" in head else None)
    if form and form.content == PARQUET:
        found = kind or ("text" if head else "empty")
        return None if kind == PARQUET else f"{says} {found}; give it the suffix of its content"
    if kind == PARQUET:
        return f"{says} a Parquet file; {'decompress' if compression else 'rename'} it to {stem}.parquet"
    if kind in _SUFFIX_OF:
        return f"{says} {kind}; rename it to {path.name}{_SUFFIX_OF[kind]}"
    if kind == _UTF16:
        return f"{says} {kind}; convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"
    if kind:
        return f"{says} {kind}; extract its text to .txt or .jsonl files"
    if form and (form.content != TEXT or listed):
        return None
    raw = f"add --suffixes {suffix}" if suffix else "rename it to end in .txt"
    if _holds_json_lines(head):
        return f"{says} JSON lines; rename it to end in .jsonl, or, to train on its raw text, {raw}"
    if form is None:
        return (
            f"{path}: the suffix {suffix} is unknown; convert the file to .jsonl, with an object "
            f'{{"text": ...}} per line, or, to train on its raw text, {raw}'
        )
    return None


def _signature(start: bytes) -> str | None:
    """Return what these bytes are the beginning of, if they show it."""
    return next((kind for at, sign, kind in _SIGNATURES if start[at : at + len(sign)] == sign), None)


def _holds_json_lines(head: bytes) -> bool:
    """Return whether the first lines are JSON objects; if the first is cut, whether it begins as one."""
    lines = [line for line in head.decode("utf-8-sig", "replace").splitlines(keepends=True) if line.strip()]
    if len(lines) == 1 and len(head) >= HEAD:
        return lines[0].lstrip().startswith('{"')
    return bool(lines) and all(_is_object(line) for line in (lines[:-1] if len(lines) > 1 else lines)[:5])


def _is_object(line: str) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and bool(value)
