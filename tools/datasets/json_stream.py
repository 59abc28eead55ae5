"""Decode a `.json` file value by value: objects one after another (on lines or not), or an array of them."""

import io
import json
from collections.abc import Iterator
from typing import Any, BinaryIO

_CHUNK = 1 << 20  # characters
_TOKEN = 16  # an error this close to the end of the buffer may be a token that is cut there (`fals`, `\\u00`)
_BLANK = " \t\r\n"


class NotJsonError(ValueError):
    """The text is not JSON, from `line` on."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(what)
        self.line = line


class JsonStream:
    """The values of a stream of UTF-8 text, in order; only the current one is in memory.

    Raises NotJsonError if the text is not JSON or not UTF-8.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._text = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        self._decoder = json.JSONDecoder()
        self._buffer, self._at = "", 0
        self._begin = 0  # of the current value in the buffer
        self._first_line = 1  # of the buffer
        self._before = 0  # characters on that line before the buffer

    @property
    def line(self) -> int:
        """The line on which the current value begins."""
        return self._line_of(self._begin)

    def __iter__(self) -> Iterator[Any]:
        is_array = self._next() == "["
        if is_array:
            self._at += 1
        while (start := self._next()) and not (is_array and start == "]"):
            yield self._value()
            if is_array and self._next() == ",":
                self._at += 1
                if self._next() == "]":
                    raise self._wrong("Expecting value after ','", self._at)
            elif is_array and self._next() not in ("]", ""):
                raise self._wrong("Expecting ',' or ']'", self._at)
        if is_array:
            if not start:
                raise self._wrong("the array does not end", self._at)
            self._at += 1
            if self._next():
                raise self._wrong("text after the end of the array", self._at)

    def _next(self) -> str:
        """Skip blanks and return the next character; "" at the end."""
        while True:
            while self._buffer[self._at : self._at + 1] in _BLANK and self._at < len(self._buffer):
                self._at += 1
            if self._at < len(self._buffer) or not self._more():
                return self._buffer[self._at : self._at + 1]

    def _value(self) -> Any:
        """Decode one value; if the buffer ends within it, continue with more of the file."""
        while True:
            self._begin = self._at
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos > len(self._buffer) - _TOKEN
                if not (is_cut and self._more()):
                    raise self._wrong(error.msg, error.pos) from None
            except RecursionError:
                raise NotJsonError("not JSON that Python can read (nested too deeply)", self.line) from None
            else:
                self._at = end
                return value

    def _more(self) -> bool:
        """Drop what was decoded and double the rest, so that a long value is decoded few times."""
        try:
            more = self._text.read(max(_CHUNK, len(self._buffer) - self._at))
        except UnicodeDecodeError as error:
            line = self._line_of(len(self._buffer)) + error.object[: error.start].count(b"\n")
            raise NotJsonError(f"not UTF-8 ({error.reason})", line) from None
        self._first_line, self._before = self._line_of(self._at), self._column_of(self._at)
        self._buffer, self._at = self._buffer[self._at :] + more, 0
        return bool(more)

    def _line_of(self, position: int) -> int:
        return self._first_line + self._buffer.count("\n", 0, position)

    def _column_of(self, position: int) -> int:
        """Return the column, counted from 0."""
        newline = self._buffer.rfind("\n", 0, position)
        return position - newline - 1 + (self._before if newline < 0 else 0)

    def _wrong(self, what: str, position: int) -> NotJsonError:
        column = self._column_of(position) + 1
        return NotJsonError(f"not JSON ({what} at column {column})", self._line_of(position))
