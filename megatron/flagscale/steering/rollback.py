"""Go back to the newest complete checkpoint, and leave out the samples between it and a bad loss.

The ranks record the rollback beside the checkpoints and end with an exit code of their own; the supervisor
starts them again at once. Which checkpoint they then find decides which samples are left out, so that this is
recorded at the next start. Later starts read the record, so that they leave out the same samples.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from flagscale.checks.steering import Range
from flagscale.errors import UserError
from flagscale.files import write_atomic

FILE = "rollbacks.json"
"""In the folder of the checkpoints."""


@dataclass(frozen=True)
class Rollback:
    """One rollback: the iteration of the bad loss, why it was bad, and the samples that are left out."""

    iteration: int
    why: str
    end: int
    """The first sample that is trained on again."""
    first: int | None = None
    """The first sample that is left out; None until the ranks have started again."""

    @property
    def skipped(self) -> Range:
        """The samples that are left out; none before they are known."""
        return (self.end if self.first is None else self.first, self.end)


def read_rollbacks(folder: Path) -> tuple[Rollback, ...]:
    """Return the rollbacks recorded in a folder of checkpoints, oldest first.

    Raises:
        UserError: the file is not a record of rollbacks.
    """
    path = folder / FILE
    try:
        return tuple(Rollback(**one) for one in json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return ()
    except (ValueError, TypeError) as error:
        what = f"{path} is not a record of rollbacks: {error}"
        raise UserError(f"{what}; remove it to train on all samples again") from error


def write_rollbacks(folder: Path, rollbacks: Sequence[Rollback]) -> None:
    """Replace the record in a folder of checkpoints."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / FILE, json.dumps([asdict(one) for one in rollbacks], indent=1) + "\n")


def settled(rollbacks: Sequence[Rollback], consumed: int) -> tuple[Rollback, ...]:
    """Return rollbacks whose samples are all known; those that were not begin after `consumed` samples, which
    is how many the checkpoint has that the ranks have loaded."""
    return tuple(
        replace(one, first=min(consumed, one.end)) if one.first is None else one for one in rollbacks
    )


def still_left_out(rollbacks: Sequence[Rollback], consumed: int) -> list[Range]:
    """Return the samples that a run leaves out which begins after `consumed` samples: ranges without gaps."""
    found: list[Range] = []
    for first, end in sorted(one.skipped for one in rollbacks if one.skipped[1] > consumed):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((first, end))
    return found
