"""What Slurm answers about the job of a run directory, and whether the answer is about that very job."""

from __future__ import annotations

from flagscale.frozen import dataclass
from flagscale.runners.slurm.commands import SlurmError
from flagscale.runners.slurm.ledger import Ledger
from flagscale.runners.slurm.records import JobRecord, ask_job

_SLACK = 1.0
"""Seconds by which the recorded time of a submission may differ from Slurm's, which has whole seconds."""


@dataclass(frozen=True)
class Lookup:
    """What is known of a job."""

    record: JobRecord | None = None
    """None if Slurm has forgotten the job, or did not answer."""
    trouble: str = ""
    """Why Slurm did not answer; "" if it did."""
    stranger: JobRecord | None = None
    """Another job that has the id now: Slurm has forgotten ours, and reused its id."""

    @property
    def is_forgotten(self) -> bool:
        """Whether Slurm no longer knows the job: it has ended, unless the controller lost its state."""
        return self.record is None and not self.trouble


def look_up(ledger: Ledger) -> Lookup:
    """Ask Slurm about the newest job of a run directory; an answer that does not come is one too."""
    try:
        record = ask_job(ledger.job_id)
    except SlurmError as error:
        return Lookup(trouble=str(error))
    if record is None or is_own(ledger, record):
        return Lookup(record)
    return Lookup(stranger=record)


def is_own(ledger: Ledger, record: JobRecord) -> bool:
    """Return whether a record is that of the recorded job, rather than of a later one with the same id.

    The name of a job that we submitted is its run id. The time of a submission is that of the last requeue.
    """
    if record.user != ledger.user:
        return False
    if ledger.is_ours:
        return record.name == ledger.name
    if not (record.submit and ledger.submitted):
        return True
    is_same = abs(record.submit - ledger.submitted) <= _SLACK
    return is_same or (record.restarts > 0 and record.submit > ledger.submitted)
