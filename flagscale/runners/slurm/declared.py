"""What this Slurm declares: its settings, partitions and hosts."""

from __future__ import annotations

import re
from collections.abc import Mapping

from flagscale.frozen import dataclass
from flagscale.runners.slurm.commands import call
from flagscale.runners.slurm.records import seconds_of

_UNUSABLE = ("down", "drain", "drng", "fail", "boot_fail", "unk", "planned_down", "inval", "maint")
_SIZES = {"K": 1 / 1024, "M": 1.0, "G": 1024.0, "T": 1024.0**2}
_NODE_FORMAT = "%R|%N|%T|%c|%m|%f|%G"


@dataclass(frozen=True)
class Partition:
    """A queue of Slurm, as `scontrol show partition` describes it."""

    name: str
    state: str
    is_default: bool
    max_time: float | None
    """In seconds; None: unlimited."""
    max_nodes: int | None
    """Per job; None: unlimited."""
    min_nodes: int
    accounts: tuple[str, ...]
    """The only accounts that may use it; empty: all."""
    denied_accounts: tuple[str, ...]
    groups: tuple[str, ...]
    """The only groups of users that may use it; empty: all."""


@dataclass(frozen=True)
class DeclaredHost:
    """A host of a partition, as `sinfo` describes it."""

    partition: str
    name: str
    state: str
    cpus: int
    memory: int
    """In MB."""
    features: tuple[str, ...]
    gpus: int

    @property
    def is_usable(self) -> bool:
        """Whether jobs can begin on it, now or when it is free."""
        return not self.state.rstrip("*~#!%$@^-+").startswith(_UNUSABLE) and "*" not in self.state


@dataclass(frozen=True)
class Declared:
    """Everything that the checks of a submission compare it with."""

    settings: Mapping[str, str]
    partitions: tuple[Partition, ...]
    hosts: tuple[DeclaredHost, ...]

    @property
    def kill_wait(self) -> float | None:
        """Seconds from TERM to KILL if a job is cancelled or at its limit; None if it is not known."""
        found = re.match(r"\d+", self.settings.get("KillWait", ""))
        return float(found[0]) if found else None

    @property
    def has_accounting(self) -> bool:
        """Whether Slurm knows which accounts a user has."""
        return "slurmdbd" in self.settings.get("AccountingStorageType", "")


def ask() -> Declared:
    """Ask Slurm what it declares. Raises SlurmError if it does not answer."""
    settings = parse_settings(call("scontrol", "show", "config"))
    partitions = parse_partitions(call("scontrol", "--all", "show", "partition"))
    nodes = call("sinfo", "--all", "--noheader", "--Node", f"--format={_NODE_FORMAT}")
    return Declared(settings, partitions, parse_nodes(nodes))


def parse_settings(text: str) -> dict[str, str]:
    """Return the settings in an answer of `scontrol show config`."""
    pairs = (line.partition("=") for line in text.splitlines() if "=" in line)
    return {name.strip(): value.strip() for name, _, value in pairs}


def parse_partitions(text: str) -> tuple[Partition, ...]:
    """Return the partitions in an answer of `scontrol show partition`."""
    records = re.split(r"^(?=PartitionName=)", text, flags=re.MULTILINE)[1:]
    return tuple(_partition(dict(re.findall(r"(\w+)=(\S*)", record))) for record in records)


def _partition(values: Mapping[str, str]) -> Partition:
    def names(key: str) -> tuple[str, ...]:
        value = values.get(key, "")
        return () if value in ("", "ALL", "(null)") else tuple(value.split(","))

    def number(key: str) -> int | None:
        return int(values[key]) if values.get(key, "").isdigit() else None

    return Partition(
        name=values["PartitionName"],
        state=values.get("State", "UP"),
        is_default=values.get("Default") == "YES",
        max_time=seconds_of(values.get("MaxTime", "")),
        max_nodes=number("MaxNodes"),
        min_nodes=number("MinNodes") or 0,
        accounts=names("AllowAccounts"),
        denied_accounts=names("DenyAccounts"),
        groups=names("AllowGroups"),
    )


def parse_nodes(text: str) -> tuple[DeclaredHost, ...]:
    """Return the hosts in an answer of sinfo, one line per host and partition."""
    found = []
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == 7:
            partition, name, state, cpus, memory, features, gres = fields
            cores, megabytes_there = (int(re.sub(r"\D.*", "", text) or 0) for text in (cpus, memory))
            known = () if features == "(null)" else tuple(features.split(","))
            found.append(DeclaredHost(partition, name, state, cores, megabytes_there, known, gpus_of(gres)))
    return tuple(found)


def gpus_of(gres: str) -> int:
    """Return the number of GPUs in `gpu:a100:4(S:0-1),gpu:2,nvme:1`."""
    return sum(int(count) for count in re.findall(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres))


def limit_seconds(text: str) -> float | None:
    """Return a time limit as sbatch reads it (`90`, `30:00`, `1-12`) in seconds; None if it is not one."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if found is None:
        return None
    days, *parts = found.groups()
    first, second, third = (int(part) if part else 0 for part in parts)
    if days is not None or parts[2] is not None:
        hours, minutes, seconds = first, second, third
    else:
        hours, minutes, seconds = 0, first, second
    return float(((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds)


def megabytes(text: str) -> float | None:
    """Return an amount of memory as sbatch reads it (`64G`, `900`) in MB; None if it is not one."""
    found = re.fullmatch(r"(\d+)([KMGT]?)B?", text.strip().upper())
    return int(found[1]) * _SIZES[found[2] or "M"] if found else None
