"""Find a Megatron checkpoint in a folder, and open it as a source, whichever of Megatron's formats it has."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

from flagscale.errors import UserError
from flagscale.run.checkpoints import RELEASE, TRACKER, tracked
from flagscale.run.manifest import MANIFEST, candidates, fault_of, is_torch_format
from megatron.flagscale.convert import torch_dist, torch_ranks


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder is a checkpoint or contains checkpoints."""
    return _is_one(folder) or (folder / TRACKER).is_file() or any(folder.glob("iter_*"))


def _is_one(folder: Path) -> bool:
    return (folder / ".metadata").is_file() or is_torch_format(folder)


def reader_of(checkpoint: Path) -> ModuleType:
    """Return the module that reads a checkpoint: it has `read_arguments`, `stored_rows` and `open_source`."""
    return torch_ranks if is_torch_format(checkpoint) else torch_dist


def find_checkpoint(folder: Path, iteration: int | None = None) -> Path:
    """Return the newest complete checkpoint of a folder, or that of an iteration; or the folder if it is one.

    Raises:
        UserError: no checkpoint was found, or it is damaged.
    """
    if _is_one(folder):
        chosen, fault = folder, _fault_of_one(folder)
    elif iteration is None and tracked(folder) == RELEASE:
        chosen, fault = folder / RELEASE, fault_of(folder / RELEASE)
    else:
        stored = [*candidates(folder)]
        found = [one for one in stored if iteration in (None, one.iteration)]
        usable = [one for one in found if one.usable]
        if not found:
            which = "" if iteration is None else f" of iteration {iteration}"
            others = f"; there are {', '.join(str(one.iteration) for one in stored)}" if stored else ""
            raise UserError(f"{folder}: no checkpoint{which} found{others}")
        if iteration is None and usable:
            return usable[0].path
        chosen, fault = found[0].path, found[0].fault
    if fault:
        raise UserError(f"{chosen}: the checkpoint cannot be used: {fault}")
    return chosen


def _fault_of_one(folder: Path) -> str:
    """Return why a folder cannot be used; the reader checks one copied without tracker and manifest."""
    is_copy = is_torch_format(folder) and not tracked(folder.parent) and not (folder / MANIFEST).exists()
    return "" if is_copy else fault_of(folder)
