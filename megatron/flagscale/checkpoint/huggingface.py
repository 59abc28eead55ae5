"""Start a training from a Hugging Face folder: convert it once, before the ranks meet.

The first rank of each host does so before it joins the others, so that no limit of a collective applies,
however large the model is. If hosts share the folder of conversions, one of them converts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Self

from flagscale.checks.lora import trains_adapters
from flagscale.checks.pretrained import CONFIG, CONVERTED, is_huggingface
from flagscale.checks.resume import Saved, resume_violations
from flagscale.errors import Problem, UserError
from flagscale.files import locked
from flagscale.formats import option_of
from flagscale.run.checkpoints import RELEASE, tracked
from flagscale.run.manifest import fault_of
from megatron.flagscale.supervision import heartbeat

_POLL = 0.5
_SECONDS_BETWEEN_LINES = 10.0


def add_conversion_args(group: argparse._ArgumentGroup) -> None:
    """Add `--converted-dir`."""
    group.add_argument(
        option_of(CONVERTED),
        metavar="FOLDER",
        help="Where the conversion is kept if --pretrained-checkpoint is a Hugging Face folder. It is used "
        "again until a file of that folder changes.",
    )


def checkpoints_of(args: Any) -> Path | None:
    """Return the folder of checkpoints that stands for the Hugging Face folder in `pretrained_checkpoint`.

    None if it is no such folder, or if the run continues from its own checkpoint, which holds all weights.
    Call it on all ranks, with the arguments as they were parsed.

    Raises:
        UserError: the model cannot be converted, or it is not that of the arguments; lists all reasons.
    """
    if not args.pretrained_checkpoint or not is_huggingface(args.pretrained_checkpoint):
        return None
    if args.load and tracked(Path(args.load)) and not trains_adapters(vars(args)):
        return None
    source = Path(args.pretrained_checkpoint)
    _compare(source, vars(args))
    return converted(source, Path(args.converted_dir), converts=os.environ.get("LOCAL_RANK", "0") == "0")


def _compare(source: Path, values: dict[str, Any]) -> None:
    """Raise `UserError` if the arguments are those of another model than the folder's."""
    from megatron.flagscale.convert.hf_arguments import arguments_in

    is_base = trains_adapters(values)
    saved = Saved(str(source / CONFIG), arguments_in(source), False, is_base, is_huggingface=True)
    if wrong := [*resume_violations(saved, values)]:
        raise UserError(Problem(what, option_of(dest)) for dest, what in wrong)


def place_of(source: Path, directory: Path) -> Path:
    """Return the folder for the conversion of `source` as it is now: its name and a hash of its files."""
    files = sorted(one for one in source.iterdir() if one.is_file() and not one.name.startswith("."))
    found = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files]
    text = json.dumps([str(source.resolve()), found])
    return directory / f"{source.resolve().name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def converted(source: Path, directory: Path, *, converts: bool) -> Path:
    """Return the conversion of `source`, once it is complete; this process makes it only if it `converts`."""
    target = place_of(source, directory)
    while not _is_complete(target):
        if converts:
            _convert_or_wait(source, target)
        else:
            time.sleep(_POLL)
    return target


def _is_complete(target: Path) -> bool:
    return bool(tracked(target)) and not fault_of(target / RELEASE)


def _convert_or_wait(source: Path, target: Path) -> None:
    """Convert, or return after a moment if another process does."""
    try:
        with locked(target.with_name(f".{target.name}.lock"), busy=_BusyError()):
            if not _is_complete(target):
                _convert(source, target)
    except _BusyError:
        heartbeat()
        time.sleep(_POLL)
    except OSError as error:
        raise UserError(f"{source} cannot be converted to {target}: {error}") from error


class _BusyError(Exception):
    """Another process converts."""


def _convert(source: Path, target: Path) -> None:
    from megatron.flagscale.convert.convert import convert

    _report(f"converting {source} to {target}, once: later starts use the result")
    made = convert(source, target, overwrite=True, progress=_Progress)
    for notice in made.notices:
        _report(notice)
    if place_of(source, target.parent) != target:
        raise UserError(f"files in {source} changed while it was converted: start the run again")


def _report(what: str) -> None:
    print(f"flagscale: {what}", flush=True)


class _Progress:
    """Prints the progress of a conversion to the log, and shows the supervisor that it goes on."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._printed = total, 0, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, failed: object, *rest: object) -> None:
        if failed is None:
            self._print()

    def advance(self, size: int, **counts: float) -> None:
        heartbeat()
        self._done += size
        if time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._print()

    def _print(self) -> None:
        self._printed = time.monotonic()
        _report(f"converted {self._done / 1e9:.2f} of {self._total / 1e9:.2f} GB")
