"""A file of chips that `profile_chip.py` completes part by part, beside entries that it leaves alone."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagscale.errors import Problem, UserError
from flagscale.files import locked, read_regular_text, write_atomic
from flagscale.formats import count, quantity
from flagscale.planner.chips import chip_of, chip_table
from flagscale.planner.curves import attention_flop

Entry = dict[str, Any]

PARTS = ("hbm_gb_s", "launch_s", "gemm", "grouped_gemm", "attention", "collectives")
"""The parts that are measured, in this order; tables have parts of their own, such as `gemm/bfloat16`."""
_FIGURES, _TABLES = PARTS[:2], PARTS[2:]
_FORM = 'its form: {"chips": {NAME: {...}}}'


def read_entries(path: Path) -> dict[str, Entry]:
    """Return the entries of a file by name; none if there is no such file yet.

    Raises:
        UserError: it is not a file of chips in JSON.
    """
    try:
        text = read_regular_text(path)
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError([Problem(f"cannot be read: {error}", str(path))]) from None
    try:
        content = json.loads(text)
    except ValueError as error:
        raise UserError([Problem(f"is not JSON: {error}", str(path), _FORM)]) from None
    # As `experiment.chips` reads it: entries, or a table that says more about itself.
    entries = content.get("chips", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(one, dict | str) for one in entries.values()):
        raise UserError([Problem("is not a file of chips", str(path), _FORM)])
    return entries


def require_writable(path: Path) -> None:
    """Raise UserError if the file could not be written after the measurements."""
    folder = path.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError([Problem(f"cannot be written: {error.strerror}", str(path))]) from None


def own_entry(entries: Mapping[str, Any], name: str, where: str) -> Entry | None:
    """Return the entry of that name, if there is one; raises UserError if it holds no figures of its own."""
    entry = entries.get(name)
    if entry is None or isinstance(entry, dict):
        return entry
    raise UserError([Problem(f"`{name}` is another name for a chip", where, "choose another with --name")])


def known_parts(name: str, entry: Mapping[str, Any], source: Mapping[str, Any]) -> list[str]:
    """Return the parts of an entry that need not be measured again.

    None is known if the entry was written by hand, or was measured quickly and now is not to be.

    Raises:
        UserError: they are of another machine or software, or a table is wrong.
    """
    chip_of(name, entry)
    measured = entry.get("measured") or {}
    before = measured.get("source")
    if not isinstance(before, Mapping):
        return []
    differ = [key for key in ("machine", "torch", "ranks") if before.get(key) != source[key]]
    if differ:
        what = ", ".join(f"{key} was {before.get(key)}, is {source[key]}" for key in differ)
        hint = "write another entry with --name NAME, or replace this one with --again"
        raise UserError([Problem(f"chip `{name}` was measured otherwise: {what}", hint=hint)])
    if before.get("quick") and not source["quick"]:
        return []
    found = [key for key in _FIGURES if key in measured]
    for key in _TABLES:
        for part, table in (measured.get(key) or {}).items():
            inner = [f"/{ranks}" for ranks in table] if isinstance(table, Mapping) else [""]
            found += [f"{key}/{part}{one}" for one in inner]
    return found


def begun(name: str, entry: Mapping[str, Any] | None, source: Mapping[str, Any]) -> Entry:
    """Return an entry to which parts are added: of a known chip, with its published figures."""
    entry = chip_table().get(name, {}) if entry is None else entry
    kept = {key: one for key, one in (entry.get("measured") or {}).items() if key not in PARTS}
    return {"intra_node": {"world": source["ranks"]}, **entry, "measured": {**kept, "source": dict(source)}}


def put(entry: Entry, part: str, value: Any) -> None:
    """Put a part into `measured` at its path, such as `gemm/bfloat16`."""
    *path, last = part.split("/")
    place = entry["measured"]
    for key in path:
        place = place.setdefault(key, {})
    place[last] = value


def write_entry(path: Path, name: str, entry: Entry) -> None:
    """Write one entry beside those that are in the file by now; the file is always complete."""
    folder = path.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        chips = {**read_entries(path), name: entry}
        text = json.dumps({"chips": chips}, indent=1, ensure_ascii=False)
        # A row of numbers stays on one line.
        text = re.sub(r"\[\s+([^][{}\"]*?)\s+\]", lambda row: f"[{' '.join(row[1].split())}]", text)
        write_atomic(path, text + "\n")


def summary(part: str, value: Any) -> str:
    """Return a line about a measured part: how many sizes, from which rate to which."""
    kind = part.partition("/")[0]
    if not isinstance(value, list):
        return f"{part}: {value:.4g}"
    unit = "B/s" if kind == "collectives" else "FLOP/s"
    rates = [_work(kind, row) / row[3 if kind == "attention" else -1] for row in value]
    return f"{part}: {count(len(value), 'size')}, {quantity(min(rates))} to {quantity(max(rates))} {unit}"


def _work(kind: str, row: list[float]) -> float:
    """Return what a call did in the time of its row: bytes, or operations (of attention: forward)."""
    if kind == "collectives":
        return row[0]
    return attention_flop(row[0], row[1], row[2]) if kind == "attention" else 2 * math.prod(row[:-1])
