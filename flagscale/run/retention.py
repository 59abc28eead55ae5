"""Which checkpoints of a directory a training keeps (`keep_last`, `keep_every`), and how the others go.

A checkpoint is set aside by a rename first, so that no run ever resumes from one of which files are missing.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from flagscale.frozen import dataclass
from flagscale.run.checkpoints import ARGUMENTS, folder_of, tracked
from flagscale.run.manifest import FOLDER, MANIFEST, iteration_of

REMOVING = ".removing"
"""The end of the name of a checkpoint's folder while it is removed."""
_LEFT_OVER = re.compile(FOLDER.pattern + re.escape(REMOVING))


@dataclass(frozen=True)
class Retention:
    """The checkpoints to keep: the newest `last`, and, if `every` is not 0, its multiples for ever."""

    last: int
    every: int = 0


def why_kept(
    iterations: Collection[int], newest: int, retention: Retention, started_from: int | None = None
) -> dict[int, str]:
    """Return why each kept iteration is kept, by iteration; those that it lacks may be removed.

    `newest` is the iteration that the tracker names. Iterations after it are of a training that was set back,
    and stay until this one reaches them. `started_from` is the iteration that the run has loaded.
    """
    past = sorted((one for one in iterations if one <= newest), reverse=True)
    kept = {one: "newer than the tracker's" for one in iterations if one > newest}
    if started_from in past:
        kept[started_from] = "the run started from it"
    if retention.every:
        kept |= {one: f"keep_every {retention.every}" for one in past if one % retention.every == 0}
    kept |= dict.fromkeys(past[: retention.last], f"keep_last {retention.last}")
    return kept | ({newest: "the newest"} if newest in past else {})


def own_iterations(directory: Path) -> Iterator[int]:
    """Yield the iterations that a training has saved there completely; no links, no converted checkpoints."""
    for name in os.listdir(directory):
        folder = directory / name
        if (iteration := iteration_of(name)) is None or folder.is_symlink():
            continue
        if all((folder / file).is_file() for file in (MANIFEST, ARGUMENTS)):
            yield iteration


def set_aside(directory: Path, retention: Retention, started_from: int | None = None) -> None:
    """Rename the checkpoints that are not kept; `remove_rest` deletes them.

    Nothing is renamed unless the tracker names a complete checkpoint of an iteration.

    Raises:
        OSError: the directory cannot be read or written.
    """
    named = tracked(directory)
    iterations = set(own_iterations(directory))
    if not named.isdigit() or int(named) not in iterations:
        return
    kept = why_kept(iterations, int(named), retention, started_from)
    for iteration in sorted(iterations - kept.keys()):
        folder = directory / folder_of(iteration)
        spare = folder.with_name(folder.name + REMOVING)
        if spare.exists():  # a removal was interrupted, and the training has been here again
            shutil.rmtree(spare)
        folder.rename(spare)


def left_over(directory: Path) -> list[Path]:
    """Return the folders that were set aside and are not deleted yet."""
    return [directory / name for name in sorted(os.listdir(directory)) if _LEFT_OVER.fullmatch(name)]


def remove_rest(directory: Path) -> None:
    """Delete what was set aside, also by earlier runs. Raises OSError if that is not possible."""
    for folder in left_over(directory):
        shutil.rmtree(folder)
