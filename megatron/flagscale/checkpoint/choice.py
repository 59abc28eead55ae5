"""Choose the newest complete checkpoint of a directory, and remove what an interrupted save left."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from flagscale.errors import UserError
from flagscale.files import write_atomic
from flagscale.run.checkpoints import RELEASE, TRACKER, tracked
from flagscale.run.manifest import Candidate, candidates, fault_of, is_torch_format


@dataclass(frozen=True)
class Choice:
    """The checkpoint to load (None to start from scratch), and the notices to print about the choice."""

    iteration: int | None
    notices: tuple[str, ...] = ()


def choose(directory: Path, owned: bool, wanted: int | None = None) -> Choice:
    """Choose the newest usable checkpoint of a directory, or the `wanted` iteration.

    In a directory this run also saves to (`owned`), unfinished folders newer than the choice are removed,
    damaged ones are renamed, and the tracker file is updated. Raises `UserError` if there are checkpoints but
    none can be used: starting over would overwrite them.
    """
    if tracked(directory) == RELEASE:
        if fault := fault_of(directory / RELEASE):
            raise UserError(f"the checkpoint {directory / RELEASE} cannot be used: {fault}")
        return Choice(None)
    rejected: list[Candidate] = []
    for candidate in candidates(directory):
        if wanted is not None and candidate.iteration != wanted:
            continue
        if candidate.usable:
            if owned and wanted is None:
                notices = [_set_aside(other.path, other.fault, other.unfinished) for other in rejected]
                _point_at(directory, candidate.iteration)
            else:
                notices = [f"checkpoint {other.path} is not used: {other.fault}" for other in rejected]
            if any(not other.unfinished for other in rejected):
                notices.append(f"falling back to the complete checkpoint of iteration {candidate.iteration}")
            return Choice(candidate.iteration, tuple(notices))
        rejected.append(candidate)
    damaged = [candidate for candidate in rejected if not candidate.unfinished]
    if wanted is not None:
        reason = rejected[0].fault if rejected else "not found"
        raise UserError(f"the checkpoint of iteration {wanted} in {directory} cannot be used: {reason}")
    # In the `torch` format, nothing but the tracker shows whether a checkpoint is complete.
    unknown = not owned and any(is_torch_format(candidate.path) for candidate in rejected)
    if damaged or unknown or (directory / TRACKER).is_file():
        reported = (
            "; ".join(f"{candidate.path.name}: {candidate.fault}" for candidate in rejected)
            or "no checkpoint folder found"
        )
        raise UserError(
            f"no checkpoint in {directory} can be used ({reported}). To start over, move this folder away."
        )
    if owned:
        return Choice(None, tuple(_set_aside(other.path, other.fault, True) for other in rejected))
    return Choice(None)


def _set_aside(folder: Path, fault: str, unfinished: bool) -> str:
    if unfinished and not is_torch_format(folder):
        shutil.rmtree(folder)
        return f"removed {folder}: {fault}"
    # In the `torch` format, a tracker that was set back or left out looks the same as an unfinished save.
    state = "unfinished" if unfinished else "damaged"
    spare = folder.with_name(f"{folder.name}.{state}")
    if spare.exists():
        shutil.rmtree(spare)
    folder.rename(spare)
    return f"checkpoint {folder} is {state} ({fault}); renamed to {spare.name}"


def _point_at(directory: Path, iteration: int) -> None:
    if tracked(directory) != str(iteration):
        write_atomic(directory / TRACKER, str(iteration))
