"""The hostfile: one line `host slots=N [type=NAME]` per host; `#` starts a comment."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flagscale.errors import Problem, UserError

_HOST = re.compile(r"[A-Za-z0-9_:]([A-Za-z0-9_.:-]*[A-Za-z0-9_])?")
_MAX_SLOTS = 1024
_FORM = "write `host slots=N` or `host slots=N type=NAME` on each line"


@dataclass(frozen=True)
class HostLine:
    """One host: its name or address, the number of ranks it can run, and its chip ("" if not given)."""

    name: str
    slots: int
    type: str = ""


def read_hostfile(path: Path) -> tuple[HostLine, ...]:
    """Read a hostfile.

    Raises:
        UserError: the file cannot be read, lists no hosts, or has bad lines (all of them are reported).
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError([Problem(f"cannot read the hostfile: {reason}", str(path))]) from None
    return parse_hostfile(text, str(path))


def parse_hostfile(text: str, file: str) -> tuple[HostLine, ...]:
    """Parse the text of a hostfile; `file` names it in messages. Raises `UserError` with every bad line."""
    hosts: dict[str, HostLine] = {}
    problems: list[Problem] = []
    for number, line in _lines(text):
        parsed = _parse(line)
        if isinstance(parsed, str):
            problems.append(Problem(parsed, f"{file}:{number}", _FORM))
        elif parsed.name in hosts:
            problems.append(Problem(f"host `{parsed.name}` is listed twice", f"{file}:{number}"))
        else:
            hosts[parsed.name] = parsed
    if not hosts and not problems:
        problems.append(Problem("the hostfile lists no hosts", file, _FORM))
    if problems:
        raise UserError(problems)
    return tuple(hosts.values())


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if content:
            yield number, content


def _parse(line: str) -> HostLine | str:
    name, *fields = line.split()
    if not _HOST.fullmatch(name):
        return f"`{name}` is not a valid host name or address"
    given: dict[str, str] = {}
    for field in fields:
        key, equals, value = field.partition("=")
        if key not in ("slots", "type") or not equals or not value:
            return f"unknown field `{field}`"
        if key in given:
            return f"`{key}` is given twice"
        given[key] = value
    slots = given.get("slots", "")
    if not slots:
        return "`slots=N` is missing"
    if not re.fullmatch(r"[0-9]{1,4}", slots) or not 1 <= int(slots) <= _MAX_SLOTS:
        return f"`slots={slots}` is not a number from 1 to {_MAX_SLOTS}"
    return HostLine(name, int(slots), given.get("type", ""))
