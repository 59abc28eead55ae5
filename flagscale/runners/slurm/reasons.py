"""Slurm's words for the state of a job, as sentences: what it waits for, why it ended."""

from __future__ import annotations

import time
from collections.abc import Mapping

from flagscale.runners.slurm.records import JobRecord

_WAITS: Mapping[str, str] = {
    "BeginTime": "its time has not come",
    "Dependency": "it waits for another job",
    "DependencyNeverSatisfied": "it waits for a job that has ended otherwise, so it never begins",
    "InvalidAccount": "its account may not be used, so it never begins",
    "InvalidQOS": "its QOS may not be used, so it never begins",
    "JobHeldAdmin": "it is held by an administrator",
    "JobHeldUser": "it is held: `scontrol release {job}`",
    "launch_failed_requeued_held": "its start failed, and it is held: `scontrol release {job}`",
    "Licenses": "it waits for licenses",
    "PartitionDown": "its partition is down",
    "PartitionInactive": "its partition is inactive",
    "PartitionNodeLimit": "its partition does not allow so many hosts, so it never begins",
    "PartitionTimeLimit": "its time limit is above that of its partition, so it never begins",
    "Priority": "jobs of a higher priority come first",
    "ReqNodeNotAvail": "hosts that it needs are down, drained or reserved",
    "Reservation": "it waits for its reservation",
    "Resources": "the hosts that it needs are in use",
}
"""By Slurm's reason why a job is pending; it has about 150 of them, and most explain themselves."""

_ENDS: Mapping[str, str] = {
    "BOOT_FAIL": "a host did not boot",
    "CANCELLED": "the job was cancelled in Slurm",
    "DEADLINE": "the job reached its deadline",
    "FAILED": "the job's script failed",
    "NODE_FAIL": "a host was lost",
    "OUT_OF_MEMORY": "a host ran out of the memory that the job had asked for",
    "PREEMPTED": "another job took its hosts",
    "TIMEOUT": "the job reached its time limit",
}
"""By Slurm's state of a job that is over, except COMPLETED."""


def clock(when: float, now: float) -> str:
    """Return a time of the day, with its date if it is far from now."""
    form = "%H:%M:%S" if abs(when - now) < 12 * 3600 else "%Y-%m-%d %H:%M:%S"
    return time.strftime(form, time.localtime(when))


def waits_text(record: JobRecord, now: float) -> str:
    """Return what a job in the queue waits for, and when it is expected to begin."""
    known = _WAITS.get(record.reason.partition(",")[0], "").format(job=record.job_id)
    said = f"{record.reason}: {known}" if known else record.reason
    parts = [f"job {record.job_id} is in Slurm's queue{f' ({said})' if said else ''}"]
    if record.eligible and record.eligible > now:
        parts.append(f"it can begin at {clock(record.eligible, now)}")
    if record.start and record.start > max(now, record.eligible or 0):
        parts.append(f"it is expected to begin at {clock(record.start, now)}")
    return "; ".join(parts)


def end_text(record: JobRecord, now: float) -> str:
    """Return why a job is over according to Slurm; "" if it completed."""
    if record.state == "COMPLETED":
        return ""
    if record.reason == "JobLaunchFailure":
        why = "Slurm could not start the job's script, because of its output file or its user on the host"
    else:
        why = _ENDS.get(record.state, "the job ended")
    code = f", exit code {record.exit_code}" if record.exit_code.partition(":")[0] not in ("", "0") else ""
    when = f" at {clock(record.end, now)}" if record.end else ""
    # Otherwise the reason is still the one for which it was pending.
    reason = record.reason if record.state in ("FAILED", "NODE_FAIL", "BOOT_FAIL") else ""
    words = ", ".join(filter(None, [record.state, reason]))
    return f"{why}{when} (job {record.job_id}: {words}{code})"
