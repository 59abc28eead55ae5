"""The checkpoints of a directory: size, time, whether each is complete, which rule keeps it, and its loss."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flagscale.frozen import dataclass
from flagscale.run.checkpoints import RELEASE, tracked
from flagscale.run.manifest import MANIFEST, fault_of, iteration_of
from flagscale.run.retention import REMOVING, Retention, own_iterations, why_kept

_SET_ASIDE = {
    ".damaged": "damaged; an earlier run has set it aside",
    ".unfinished": "not finished; an earlier run has set it aside",
    REMOVING: "being removed; a run that was interrupted finishes that after its next save",
}
"""What the ends of names mean, of folders that no run loads."""


@dataclass(frozen=True)
class Listed:
    """One checkpoint, or what is left of one."""

    name: str
    iteration: int | None
    """None for a checkpoint without one (`release`) and for what was set aside."""
    nbytes: int
    saved: float
    """Seconds since 1970: when its manifest was written, else the time of its folder."""
    fault: str
    """Why it cannot be loaded; empty if it is complete."""
    kept_by: str
    """The rule that keeps it; empty if there is none."""
    loss: float | None
    """The logged training loss at this iteration; None if it was not logged there."""
    loads: bool
    """Whether a run would load it now."""


def list_checkpoints(
    directory: Path, metrics: Path | None, retention: Retention | None, wanted: int | None = None
) -> list[Listed]:
    """Return the checkpoints of a directory, oldest first; `wanted` is the value of `ckpt_step`.

    Every file is compared with its manifest, up to a megabyte of each.

    Raises:
        OSError: the directory cannot be read.
    """
    losses, newest = losses_of(metrics), tracked(directory)
    folders = sorted(
        (one for one in directory.iterdir() if one.is_dir() and _is_listed(one.name)), key=_order
    )
    faults = {folder: _fault(folder) for folder in folders}
    choice = _choice(directory, [folder for folder in folders if not faults[folder]], wanted)
    own = set(own_iterations(directory))
    kept: Mapping[int, str] = dict.fromkeys(own, "all are kept")
    if retention and newest.isdigit():
        kept = why_kept(own, int(newest), retention, iteration_of(choice.name) if choice else None)
    others = "not saved by a training"
    return [
        Listed(
            name=folder.name,
            iteration=(number := iteration_of(folder.name)),
            nbytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
            saved=_time(folder),
            fault=fault,
            kept_by="" if fault else kept.get(number, "") if number in own else others,
            loss=losses.get(number) if number is not None else None,
            loads=folder == choice,
        )
        for folder, fault in faults.items()
    ]


def losses_of(metrics: Path | None) -> dict[int, float]:
    """Return the training loss by iteration from a metrics file; nothing if there is none."""
    found: dict[int, float] = {}
    for record in _records(metrics) if metrics else ():
        if isinstance(record.get("iteration"), int) and isinstance(record.get("lm_loss"), float):
            found[record["iteration"]] = record["lm_loss"]
    return found


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with suppress(OSError), path.open("rb") as file:
        for line in file:
            with suppress(ValueError):  # the line that is being written
                if isinstance(record := json.loads(line), dict):
                    yield record


def _is_listed(name: str) -> bool:
    stem = next((name.removesuffix(end) for end in _SET_ASIDE if name.endswith(end)), name)
    return stem == RELEASE or iteration_of(stem) is not None


def _fault(folder: Path) -> str:
    return next((what for end, what in _SET_ASIDE.items() if folder.name.endswith(end)), "") or fault_of(
        folder
    )


def _choice(directory: Path, usable: list[Path], wanted: int | None) -> Path | None:
    """Return the folder that a run loads, of those that are complete (oldest first); None if it starts anew.

    That is `release` if the tracker names it, else the `wanted` iteration or the newest one.
    """
    if tracked(directory) == RELEASE:
        return next((folder for folder in usable if folder.name == RELEASE), None)
    numbered = [folder for folder in usable if iteration_of(folder.name) is not None]
    return next((one for one in reversed(numbered) if wanted in (None, iteration_of(one.name))), None)


def _order(folder: Path) -> tuple[int, str]:
    number = folder.name.removeprefix("iter_").partition(".")[0]
    return int(number) if number.isdigit() else 0, folder.name


def _time(folder: Path) -> float:
    manifest = folder / MANIFEST
    return (manifest if manifest.is_file() else folder).stat().st_mtime
