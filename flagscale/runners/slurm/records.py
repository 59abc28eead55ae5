"""What Slurm knows of a job: the answer of `scontrol show job`.

Of Slurm's programs only this one reports in one answer all that a status needs: the state with its reason,
eligible and expected times, the limit, nodes, restarts, and all components of a heterogeneous job. It has one
line per free text, so spaces and `=` in a name or a comment are read as they are (`scontrol -o` has not).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

from flagscale.config.host_names import expand
from flagscale.frozen import dataclass
from flagscale.runners.slurm.commands import SlurmRefused, call

_OVER = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
    *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
)
_WAITING = ("PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "SPECIAL_EXIT")
_FREE_TEXTS = ("JobName", "Comment", "AdminComment", "SystemComment", "Command", "WorkDir")
"""The keys whose values go on to the end of the line."""
_NOTHING = ("(null)", "None", "N/A", "Unknown")
"""What stands for a missing value; in a free text only the first one does."""
_PAIR = re.compile(r"([A-Za-z][\w/:]*)=(\S*)")
_RECORD = re.compile(r"^JobId=", re.MULTILINE)
_LIMIT = re.compile(r"(?:(\d+)-)?(\d+):(\d+):(\d+)")


@dataclass(frozen=True)
class JobRecord:
    """A job as Slurm describes it. Times are in seconds since the epoch, by Slurm's clock; None: unknown."""

    job_id: str
    user: str
    name: str
    comment: str
    state: str
    """In Slurm's words: `PENDING`, `RUNNING`, `COMPLETING`, ..."""
    reason: str
    """Why it is in this state, as one word of Slurm; "" if it gives none."""
    submit: float | None
    """When it was submitted; after a requeue, when it was requeued."""
    eligible: float | None
    """From when on it may begin."""
    start: float | None
    """When it began, or is expected to begin."""
    end: float | None
    """When it ended, or reaches its time limit."""
    time_limit: float | None
    """In seconds; None: unlimited, or the partition's."""
    nodes: tuple[str, ...]
    """Those it runs on, or has run on."""
    node_count: int
    restarts: int
    exit_code: str
    """`CODE:SIGNAL`"""
    partition: str
    leader: str = ""
    """The id of the heterogeneous job that this is a component of; "" if it is none."""
    requeues: bool = False
    """Whether Slurm begins it again after preemption or the loss of a node."""

    @property
    def is_over(self) -> bool:
        """Whether nothing of it can run any more."""
        return self.state in _OVER

    @property
    def is_waiting(self) -> bool:
        """Whether it is in the queue, for the first time or again."""
        return self.state in _WAITING

    @property
    def is_held(self) -> bool:
        """Whether it is in the queue and stays there until somebody releases it."""
        return self.is_waiting and "held" in self.reason.lower()


def ask_job(job_id: str) -> JobRecord | None:
    """Return what Slurm knows of a job; None if it has forgotten it (`MinJobAge` after its end).

    Raises:
        SlurmError: Slurm did not answer.
    """
    return next((record for record in ask_jobs(job_id) if record.job_id == job_id), None)


def ask_jobs(job_id: str) -> list[JobRecord]:
    """Return what Slurm knows of a job: one record per component, none if it has forgotten the job.

    Raises:
        SlurmError: Slurm did not answer.
    """
    try:
        text = call("scontrol", "show", "job", job_id)
    except SlurmRefused as refused:
        if "Invalid job id" in refused.words:
            return []
        raise
    # A comment of several lines may look like a record, so only those that were asked for count.
    return [one for one in parse_jobs(text) if job_id in (one.job_id, one.leader)]


def parse_jobs(text: str) -> list[JobRecord]:
    """Return the records in an answer of `scontrol show job`, with times in seconds since the epoch."""
    starts = [found.start() for found in _RECORD.finditer(text)]
    return [_record(_values(text[begin:end])) for begin, end in pairwise([*starts, len(text)])]


def _values(text: str) -> dict[str, str]:
    """Return the values of one record by key. The first one counts: a later one is part of a comment."""
    found: dict[str, str] = {}
    for line in text.split("\n"):
        for key, value in _pairs(line):
            if value not in (_NOTHING if key not in _FREE_TEXTS else _NOTHING[:1]):
                found.setdefault(key, value)
    return found


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    for pair in _PAIR.finditer(line):
        if pair[1] in _FREE_TEXTS:
            yield pair[1], line[pair.start(2) :].strip()
            return
        yield pair[1], pair[2]


def _record(values: dict[str, str]) -> JobRecord:
    return JobRecord(
        job_id=values["JobId"],
        user=values.get("UserId", "").partition("(")[0],
        name=values.get("JobName", ""),
        comment=values.get("Comment", ""),
        state=values.get("JobState", ""),
        reason=values.get("Reason", ""),
        submit=_time(values.get("SubmitTime")),
        eligible=_time(values.get("EligibleTime")),
        start=_time(values.get("StartTime")),
        end=_time(values.get("EndTime")),
        time_limit=seconds_of(values.get("TimeLimit", "")),
        nodes=tuple(expand(names)) if (names := values.get("NodeList")) else (),
        node_count=int(values.get("NumNodes", "0").partition("-")[0]),
        restarts=int(values.get("Restarts", "0")),
        exit_code=values.get("ExitCode", ""),
        partition=values.get("Partition", ""),
        leader=values.get("HetJobId", ""),
        requeues=values.get("Requeue") == "1",
    )


def _time(text: str | None) -> float | None:
    return float(text) if text and text.isdigit() else None


def seconds_of(limit: str) -> float | None:
    """Return a time limit such as `1-00:30:00` in seconds; None if it is not one (`UNLIMITED`)."""
    found = _LIMIT.fullmatch(limit)
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
