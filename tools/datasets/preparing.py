"""Prepare a folder of pairs: continue or reuse earlier work, refuse what must not be touched.

`text_document.parts/request.json` records what the parts are made from. At the end all parts are merged and
renamed, and `text_document.json` records the result.
"""

import shutil
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from flagscale.checks import indexed
from flagscale.checks.facts import facts, facts_path
from flagscale.errors import UserError
from flagscale.files import write_atomic
from tools.datasets.folders import locked, read_json, refuse_other, write_json
from tools.datasets.output import OutputFolder, Prepared
from tools.datasets.parts import merge


@dataclass(frozen=True)
class Made:
    """What is written beside the parts once they are merged."""

    known: Mapping[str, Any]
    """Facts of each pair of text, besides its size and its largest id."""
    extras: Mapping[str, str] = field(default_factory=dict)
    """The texts of `OutputFolder.extras`."""


def prepare(
    layout: OutputFolder,
    request: Mapping[str, Any],
    make: Callable[[], Made],
    *,
    overwrite: bool,
    may_change: Collection[str] = (),
) -> Prepared:
    """Have `make` write all parts, and merge them; continue or reuse earlier work.

    Args:
        request: everything that determines the result.
        may_change: keys of it that do not change the parts.

    Raises:
        UserError: the folder was made with other settings, or by another tool.
    """
    with locked(layout.output):
        if overwrite:
            layout.discard()
        ready = _up_to_date(layout, dict(request), may_change)
        if ready is not None:
            return ready
        layout.parts.mkdir(exist_ok=True)
        write_json(layout.request, request)
        made = make()
        splits = merge(layout, made.known)
        for name, text in made.extras.items():
            write_atomic(layout.output / name, text)
        record = {"request": request, "splits": {name: asdict(held) for name, held in splits.items()}}
        write_json(layout.record, record)
        shutil.rmtree(layout.parts)
        return Prepared(splits, made_now=True)


def _up_to_date(
    layout: OutputFolder, request: dict[str, Any], may_change: Collection[str]
) -> Prepared | None:
    """Return the finished data, or None if there is work to do; raise UserError if it must not be touched."""
    record = read_json(layout.record)
    if record is None:
        _check_unfinished(layout, request, may_change)
        return None
    refuse_other(layout.output, record["request"], request)
    splits = {name: indexed.Summary(**held) for name, held in record["splits"].items()}
    damaged = [
        problem
        for split in splits
        for kind in layout.kinds
        for problem in indexed.problems(layout.prefix(split, kind))
    ]
    prefixes = [layout.prefix(split) for split in splits]
    damaged += [
        f"{facts_path(prefix)}: not the facts of this pair" for prefix in prefixes if not facts(prefix)
    ]
    files = [layout.output / name for name in layout.extras]
    damaged += [f"{file}: no such file" for file in files if not file.is_file()]
    if damaged:
        print(*damaged, "remaking the data", sep="\n", file=sys.stderr)
        layout.discard()
        return None
    shutil.rmtree(layout.parts, ignore_errors=True)  # left by a kill after everything was done
    return Prepared(splits, made_now=False)


def _check_unfinished(layout: OutputFolder, request: dict[str, Any], may_change: Collection[str]) -> None:
    """Raise UserError if the folder has parts of another request, or files of another tool."""
    unfinished = read_json(layout.request)
    if unfinished is None:
        if strangers := [str(file) for file in layout.files() if file.exists()]:
            raise UserError(
                f"{strangers[0]}: not made by this tool; choose another --output, or --overwrite it"
            )
        return
    begun, asked = (
        {key: value for key, value in one.items() if key not in may_change} for one in (unfinished, request)
    )
    if begun != asked and layout.mistakes.exists():  # their source was refused, and has been fixed since
        shutil.rmtree(layout.parts)
    elif layout.complete_parts():  # otherwise starting with other settings loses nothing
        refuse_other(layout.output, begun, asked)
