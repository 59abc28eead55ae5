"""The allocation of Slurm that this command runs in: its hosts, and what Slurm has given on each of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from flagscale.config.host_names import expand
from flagscale.errors import FlagScaleError
from flagscale.frozen import dataclass
from flagscale.runners.slurm.commands import SlurmRefused, call
from flagscale.runners.slurm.declared import gpus_of
from flagscale.runners.slurm.records import JobRecord, parse_jobs

_RECORD = re.compile(r"^(?=JobId=)", re.MULTILINE)
_GIVEN = re.compile(r"^\s+Nodes=(\S+) CPU_IDs=\S* Mem=\S* GRES=(.*)$", re.MULTILINE)
_ADDRESS = re.compile(r"^NodeName=(\S+) .*?\bNodeAddr=(\S+)", re.MULTILINE)


@dataclass(frozen=True)
class AllocatedHost:
    """A host that Slurm has given to a job."""

    name: str
    """Its name in Slurm, which need not be one of the network."""
    gpus: int
    """How many of its GPUs the job has."""
    group: int = 0
    """The component of a heterogeneous job that it belongs to."""


@dataclass(frozen=True)
class Allocation:
    """A job of Slurm that has hosts."""

    job: JobRecord
    """Slurm's record of it; that of the leader if it has several components."""
    hosts: tuple[AllocatedHost, ...]
    """In the order in which Slurm numbers its hosts, component by component."""
    components: tuple[str, ...] = ()
    """The ids of the components of a heterogeneous job; empty if it is none."""

    @property
    def job_id(self) -> str:
        """The id that stands for the whole job."""
        return self.job.job_id

    @property
    def restarts(self) -> int:
        """How often Slurm had begun the job before."""
        return self.job.restarts


def allocated_job(environ: Mapping[str, str]) -> str:
    """Return the id of the job whose allocation an environment belongs to; "" if it belongs to none."""
    return environ.get("SLURM_JOB_ID", "") if environ.get("SLURM_JOB_NODELIST") else ""


def allocation(environ: Mapping[str, str]) -> Allocation | None:
    """Return the allocation that an environment belongs to; None if it belongs to none.

    Raises:
        SlurmError: Slurm does not answer.
        FlagScaleError: the job of that allocation is over.
    """
    job_id = allocated_job(environ)
    if not job_id:
        return None
    hint = "leave the shell of that allocation, or unset SLURM_JOB_ID"
    try:
        found = parse_allocation(call("scontrol", "--details", "show", "job", job_id))
    except SlurmRefused as refused:
        if "Invalid job id" not in refused.words:
            raise
        raise FlagScaleError(f"SLURM_JOB_ID is {job_id}, a job that Slurm no longer knows; {hint}") from None
    if found.job.is_over or found.job.is_waiting or not found.hosts:
        what = f"SLURM_JOB_ID is {job_id}, a job without hosts ({found.job.state})"
        raise FlagScaleError(f"{what}; {hint}")
    return found


def parse_allocation(text: str) -> Allocation:
    """Return the allocation in an answer of `scontrol --details show job`, one record per component."""
    records = parse_jobs(text)
    hosts: list[AllocatedHost] = []
    for group, (record, details) in enumerate(zip(records, _RECORD.split(text)[1:], strict=True)):
        gpus = _gpus_by_host(details)
        hosts += [AllocatedHost(name, gpus.get(name, 0), group) for name in record.nodes]
    components = tuple(record.job_id for record in records) if records[0].leader else ()
    return Allocation(records[0], tuple(hosts), components)


def _gpus_by_host(details: str) -> dict[str, int]:
    """Return how many GPUs a job has on each host, from its `GRES=gpu:a100:2(IDX:0-1)`."""
    return {name: gpus_of(given) for nodes, given in _GIVEN.findall(details) for name in expand(nodes)}


def addresses(names: Sequence[str]) -> dict[str, str]:
    """Return the address at which Slurm reaches each of these hosts, as its configuration spells it.

    Raises:
        SlurmError: Slurm does not answer.
    """
    known = dict(_ADDRESS.findall(call("scontrol", "--oneliner", "show", "node", ",".join(names))))
    return {name: known.get(name, name) for name in names}
