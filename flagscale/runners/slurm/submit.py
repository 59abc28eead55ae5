"""Submit a job to Slurm from a login node: record it, hand its batch script to sbatch, and record the job."""

from __future__ import annotations

import getpass
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from flagscale.config.schema import SlurmJob
from flagscale.errors import FlagScaleError
from flagscale.files import write_atomic
from flagscale.plan.render import scripts
from flagscale.remote import launcher
from flagscale.remote.launcher import OnProgress
from flagscale.run.rundir import RunDir
from flagscale.runners.base import earlier_job
from flagscale.runners.slurm import directives, ledger
from flagscale.runners.slurm.commands import SlurmError, SlurmSilent, call
from flagscale.runners.slurm.hidden import hide
from flagscale.runners.slurm.ledger import Ledger
from flagscale.runners.slurm.records import ask_jobs
from flagscale.values import LaunchPlan

if TYPE_CHECKING:
    from flagscale.plan.prepare import Prepared

_SUBMISSION = 20.0
"""Seconds that sbatch may take: sites check submissions with programs of their own."""


def submit(prepared: Prepared, plan: LaunchPlan, done: OnProgress | None) -> str:
    """Submit the plan, and return a line that names its job. Raises FlagScaleError if Slurm refuses it."""
    run_dir = RunDir(Path(plan.exp_dir))
    texts = {**scripts(plan), **directives.scripts(plan)}
    with (
        _put_back(run_dir),
        launcher.recorded(plan, texts, prepared.config, {}, earlier_job),
    ):
        hide(run_dir, prepared.experiment)
        try:
            words = ("--parsable", str(run_dir.slurm_script))
            printed = call("sbatch", *words, seconds=_SUBMISSION, without=directives.overriding(plan))
        except SlurmSilent as error:
            # The job, should there be one, finds no plan of its own in the run directory, and ends.
            hint = f"if Slurm has taken the job all the same, it ends by itself (squeue --name={plan.run_id})"
            raise FlagScaleError(f"the job was not submitted: {error}; {hint}") from None
        except SlurmError as error:
            raise FlagScaleError(f"the job was not submitted: {error}") from None
        job_id, _, cluster = printed.split()[-1].partition(";")
        job = SlurmJob.model_validate(plan.slurm)
        ledger.record_job(run_dir, new_ledger(plan, job_id, cluster))
    components = f" with {len(job.groups)} groups of hosts" if job.groups else ""
    return f"  submitted to Slurm as job {job_id}{components}"


def new_ledger(plan: LaunchPlan, job_id: str, cluster: str) -> Ledger:
    """Return the record of a job that was just submitted."""
    job = SlurmJob.model_validate(plan.slurm)
    return Ledger(
        cluster=cluster or os.environ.get("SLURM_CLUSTER_NAME", ""),
        job_id=job_id,
        user=getpass.getuser(),
        name=plan.run_id,
        submitted=time.time(),
        step=plan.run_id,
        is_ours=True,
        components=_components(job_id) if job.groups else (),
        requeues=job.requeue,
    )


def _components(job_id: str) -> tuple[str, ...]:
    """Return the ids of the components of a heterogeneous job; none if Slurm does not answer."""
    try:
        return tuple(record.job_id for record in ask_jobs(job_id))
    except SlurmError:
        return ()


@contextmanager
def _put_back(run_dir: RunDir) -> Iterator[None]:
    """If the submission fails, put back what an earlier run has recorded, so that no half start is left."""
    recorded = {path: _content(path) for path in (run_dir.plan, run_dir.config, run_dir.slurm_script)}
    secrets = _content(run_dir.slurm_secrets)
    try:
        yield
    except BaseException:
        for path, content in recorded.items():
            if _content(path) != content:
                _restore(path, content, 0o755 if path == run_dir.slurm_script else 0o644)
        _restore(run_dir.slurm_secrets, secrets, 0o600)
        raise


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _restore(path: Path, content: bytes | None, mode: int) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    else:
        write_atomic(path, content, mode)
