"""The hostfile: one line `host slots=N [type=NAME]` per host or range of hosts; `#` starts a comment."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flagscale.config.host_names import canonical, expand, refusal
from flagscale.errors import Problem, UserError
from flagscale.files import read_regular_text
from flagscale.plan.foreign_lines import FORM, MAX_SLOTS, advice


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
        text = read_regular_text(path, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise UserError([Problem(f"cannot read the hostfile: {reason}", str(path))]) from None
    return parse_hostfile(text, str(path))


def parse_hostfile(text: str, file: str) -> tuple[HostLine, ...]:
    """Parse the text of a hostfile; `file` names it in messages. Raises `UserError` with every bad line."""
    hosts: dict[str, tuple[int, HostLine]] = {}
    problems: list[Problem] = []
    lines = dict(_lines(text))
    repeated = Counter(lines.values())
    for number, line in lines.items():
        where = f"{file}:{number}"
        try:
            parsed = _parse(line)
        except ValueError as error:
            problems.append(Problem(str(error), where, advice(line, repeated[line])))
            continue
        for host in parsed:
            first, known = hosts.setdefault(canonical(host.name), (number, host))
            if known is not host:
                other = (
                    f"line {first}" if known.name == host.name else f"it is `{known.name}` of line {first}"
                )
                problems.append(Problem(f"host `{host.name}` is listed twice: {other}", where))
    if not hosts and not problems:
        problems.append(Problem("the hostfile lists no hosts", file, FORM))
    if problems:
        raise UserError(problems)
    return tuple(host for _, host in hosts.values())


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        content = line.partition("#")[0].strip()
        if content:
            yield number, content


def _parse(line: str) -> list[HostLine]:
    """Return the hosts of a line. Raises ValueError if it is not in our form."""
    name, *fields = line.split()
    names = expand(name)
    for reason in filter(None, map(refusal, names)):
        raise ValueError(reason)
    given: dict[str, str] = {}
    for field in fields:
        key, equals, value = field.partition("=")
        if key not in ("slots", "type") or not equals or not value:
            raise ValueError(f"unknown field `{field}`")
        if key in given:
            raise ValueError(f"`{key}` is given twice")
        given[key] = value
    slots = given.get("slots", "")
    if not slots:
        raise ValueError("`slots=N` is missing")
    if not re.fullmatch(r"[0-9]{1,4}", slots) or not 1 <= int(slots) <= MAX_SLOTS:
        raise ValueError(f"`slots={slots}` is not a number from 1 to {MAX_SLOTS}")
    return [HostLine(one, int(slots), given.get("type", "")) for one in names]
