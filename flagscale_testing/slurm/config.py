"""The configuration of a cluster: its nodes, and the text of its files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Proctrack = Literal["linuxproc", "cgroup"]

CPUS, MEMORY, GPUS = 4, 1000, 2
"""What each node claims to have (memory in MB). Its GPUs are terminals: no process uses them."""


@dataclass(frozen=True)
class Node:
    """A virtual node: slurmd with a host name and an address of its own."""

    name: str
    address: str
    port: int
    features: str = ""


@dataclass(frozen=True)
class Cluster:
    """A cluster before it runs; times in seconds."""

    folder: Path
    port: int
    nodes: tuple[Node, ...]
    proctrack: Proctrack = "linuxproc"
    kill_wait: int = 30
    """From TERM to KILL when a job is cancelled or at its limit."""
    slurmd_timeout: int = 10
    """After which a node that does not answer is down."""
    min_job_age: int = 300
    """After which a job that has ended is forgotten."""
    settings: dict[str, str] = field(default_factory=dict)
    """More settings of slurm.conf, or other values."""
    partitions: tuple[str, ...] = (
        "main Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1",
        "high Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=OFF",
    )
    """Jobs of the partition `high` preempt those of `main`."""

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def socket(self) -> Path:
        """At which munged answers."""
        return self.folder / "munge" / "socket"

    def write_files(self) -> None:
        """Write everything that the daemons read, and make the folders that they write to."""
        for name in ("munge", "logs", "state", *(f"spool/{node.name}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        key = self.folder / "munge" / "key"
        key.touch(mode=0o600)
        key.write_bytes(bytes(range(128)))
        self.conf.write_text(self._slurm_conf())
        names = ",".join(node.name for node in self.nodes)
        gres = f"NodeName={names} Name=gpu File=/dev/tty[0-{GPUS - 1}]\n"
        (self.folder / "gres.conf").write_text(gres)
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        hosts = ["127.0.0.1 localhost", *(f"{node.address} {node.name}" for node in self.nodes)]
        (self.folder / "hosts").write_text("".join(f"{line}\n" for line in hosts))

    def _slurm_conf(self) -> str:
        folder = self.folder
        settings = {
            "ClusterName": "tiny",
            "SlurmctldHost": "localhost(127.0.0.1)",
            "SlurmctldPort": self.port,
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "AuthType": "auth/munge",
            "AuthInfo": f"socket={self.socket}",
            "CredType": "cred/munge",
            "StateSaveLocation": folder / "state",
            "SlurmdSpoolDir": f"{folder}/spool/%n",
            "SlurmctldPidFile": folder / "slurmctld.pid",
            "SlurmdPidFile": f"{folder}/slurmd-%n.pid",
            "SlurmctldLogFile": folder / "logs" / "slurmctld.log",
            "SlurmdLogFile": f"{folder}/logs/slurmd-%n.log",
            "ProctrackType": f"proctrack/{self.proctrack}",
            "TaskPlugin": "task/none",
            # A node may have more cores than this machine.
            "SlurmdParameters": "config_overrides",
            "JobAcctGatherType": "jobacct_gather/none",
            "AccountingStorageType": "accounting_storage/none",
            "JobCompType": "jobcomp/none",
            "SwitchType": "switch/none",
            "MpiDefault": "none",
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "sched_interval=1,bf_interval=1,sched_min_interval=0",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_Core_Memory",
            "ReturnToService": 2,
            "SlurmctldTimeout": 10,
            "SlurmdTimeout": self.slurmd_timeout,
            "InactiveLimit": 0,
            "KillWait": self.kill_wait,
            "MinJobAge": self.min_job_age,
            "Waittime": 0,
            "PropagateResourceLimits": "NONE",
            "GresTypes": "gpu",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            "JobRequeue": 1,
            **self.settings,
        }
        lines = [f"{name}={value}" for name, value in settings.items()]
        for node in self.nodes:
            place = f"NodeHostname={node.name} NodeAddr={node.address} Port={node.port}"
            size = f"CPUs={CPUS} SocketsPerBoard=1 CoresPerSocket={CPUS} RealMemory={MEMORY} Gres=gpu:{GPUS}"
            features = f" Feature={node.features}" if node.features else ""
            lines.append(f"NodeName={node.name} {place} {size}{features}")
        lines += [f"PartitionName={partition} State=UP" for partition in self.partitions]
        return "".join(f"{line}\n" for line in lines)
