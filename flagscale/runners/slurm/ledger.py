"""The record of a run's job in Slurm, `slurm.json` in the run directory, for every action and the job itself.

Slurm forgets a job minutes after its end, reuses the ids of jobs, and counts a job that is submitted again as
another one. So the file keeps the history of all jobs of a run directory.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Literal

from flagscale.errors import FlagScaleError
from flagscale.files import locked, write_atomic
from flagscale.frozen import asdict, dataclass, replace
from flagscale.run.rundir import RunDir

End = Literal["", "finished", "failed", "stopped", "time limit", "preempted", "node lost"]
"""Why a begin ended; "": it has not, or nobody could record it."""


@dataclass(frozen=True)
class Begin:
    """One time that Slurm began a job; times are in seconds since the epoch."""

    job_id: str
    number: int
    """How often Slurm had begun this job before (`SLURM_RESTART_COUNT`)."""
    run_id: str
    hosts: tuple[str, ...]
    """By their names in Slurm, in rank order."""
    began: float
    ended: float | None = None
    end: End = ""
    reason: str = ""
    """More about the end, for people."""
    failures: int = 0
    """How many attempts failed in it, which `max_restarts` limits over all begins."""


@dataclass(frozen=True)
class Ledger:
    """The newest Slurm job of a run directory, and every begin of this job and of earlier ones."""

    cluster: str
    """The name of the cluster; "" if it is not known."""
    job_id: str
    """The leader's id, if the job has several components."""
    user: str
    name: str
    """The job's name in Slurm: the run id given at submission, if the job is ours."""
    submitted: float
    """When it was submitted, in seconds since the epoch; by Slurm's clock if it is someone's allocation."""
    step: str
    """The name of the newest step, which is the id of the newest run."""
    is_ours: bool
    """Whether the job was submitted by FlagScale, so that a stop ends it; otherwise only its step is."""
    components: tuple[str, ...] = ()
    """The ids of the components of a heterogeneous job."""
    requeues: bool = False
    """Whether it is requeued before the time limit, after preemption and after a lost node."""
    excluded: tuple[str, ...] = ()
    """The hosts that were lost, on which it does not begin again."""
    stop_requested: float | None = None
    """When a stop was requested, in seconds since the epoch."""
    begins: tuple[Begin, ...] = ()
    """The oldest first, those of earlier jobs included."""

    @property
    def own_begins(self) -> tuple[Begin, ...]:
        """The begins of the newest job alone."""
        return tuple(begin for begin in self.begins if begin.job_id == self.job_id)


def read(run_dir: RunDir) -> Ledger | None:
    """Return what is recorded; None if no job of this run directory was ever given to Slurm.

    Raises:
        FlagScaleError: the file exists but cannot be read.
    """
    try:
        return _from_json(run_dir.slurm.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        hint = "remove the file if the job has ended (squeue --me)"
        raise FlagScaleError(f"{run_dir.slurm} cannot be read ({error}); {hint}") from None


def record_job(run_dir: RunDir, job: Ledger) -> None:
    """Record a new job; the begins of earlier jobs are kept."""
    with _held(run_dir):
        earlier = read(run_dir)
        _write(run_dir, replace(job, begins=(*(earlier.begins if earlier else ()), *job.begins)))


def record_begin(run_dir: RunDir, begin: Begin) -> Ledger:
    """Record that the newest job has begun, with its step; return what is recorded now.

    A begin that was recorded before it and has no end was cut off: nobody could record its end.
    """

    def add(ledger: Ledger) -> Ledger:
        return replace(ledger, step=begin.run_id, begins=(*ledger.begins, begin))

    return _update(run_dir, add)


def record_end(
    run_dir: RunDir, run_id: str, end: End, reason: str = "", ended: float | None = None, failures: int = 0
) -> Ledger:
    """Record why a begin ended (default: now), unless that was recorded; return what is recorded now."""
    when = time.time() if ended is None else ended

    def close(ledger: Ledger) -> Ledger:
        def closed(begin: Begin) -> Begin:
            if begin.run_id != run_id or begin.end:
                return begin
            return replace(begin, ended=when, end=end, reason=reason, failures=failures)

        return replace(ledger, begins=tuple(map(closed, ledger.begins)))

    return _update(run_dir, close)


def exclude(run_dir: RunDir, hosts: tuple[str, ...]) -> Ledger:
    """Record hosts on which the job does not begin again; return what is recorded now."""
    return _update(
        run_dir,
        lambda ledger: replace(ledger, excluded=tuple(dict.fromkeys((*ledger.excluded, *hosts)))),
    )


def request_stop(run_dir: RunDir, job_id: str) -> Ledger:
    """Record that a stop of this job was requested, so that it does not begin again; return the result."""

    def stop(ledger: Ledger) -> Ledger:
        return replace(ledger, stop_requested=time.time()) if ledger.job_id == job_id else ledger

    return _update(run_dir, stop)


def _held(run_dir: RunDir) -> AbstractContextManager[None]:
    """Lock the ledger: the login node and the job change it at the same time."""
    return locked(run_dir.path / ".slurm.lock")


def _update(run_dir: RunDir, change: Callable[[Ledger], Ledger]) -> Ledger:
    with _held(run_dir):
        ledger = read(run_dir)
        if ledger is None:
            raise FlagScaleError(f"{run_dir.slurm} does not exist, so no job of Slurm is known there")
        changed = change(ledger)
        if changed != ledger:
            _write(run_dir, changed)
        return changed


def _write(run_dir: RunDir, ledger: Ledger) -> None:
    write_atomic(run_dir.slurm, json.dumps(asdict(ledger), indent=1) + "\n")


def _from_json(text: str) -> Ledger:
    """Return the ledger in a text. Raises ValueError if there is none."""
    raw: Any = json.loads(text)
    try:
        begins = tuple(Begin(**{**one, "hosts": tuple(one["hosts"])}) for one in raw["begins"])
        names = {name: tuple(raw[name]) for name in ("components", "excluded")}
        return Ledger(**{**raw, **names, "begins": begins})
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"not a record of a Slurm job: {error}") from None
