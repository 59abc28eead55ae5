"""The checks of a job before its submission, against what Slurm declares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flagscale.runners.slurm import check
from flagscale.runners.slurm.check import folder_result, plan_results
from flagscale.runners.slurm.declared import (
    Declared,
    ask,
    gpus_of,
    limit_seconds,
    megabytes,
    parse_nodes,
    parse_partitions,
    parse_settings,
)
from flagscale_testing.slurm.cluster import SlurmCluster
from tests.unit.plans import make_plan

PARTITIONS = """PartitionName=main
   AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL
   AllocNodes=ALL Default=YES QoS=N/A
   MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0 LLN=NO MaxCPUsPerNode=UNLIMITED
   Nodes=n[1-4]
   State=UP TotalCPUs=12 TotalNodes=4 SelectTypeParameters=NONE

PartitionName=short
   AllowGroups=staff,ops AllowAccounts=physics,chemistry AllowQos=ALL
   AllocNodes=ALL Default=NO QoS=N/A
   MaxNodes=2 MaxTime=1-00:00:00 MinNodes=1 LLN=NO MaxCPUsPerNode=UNLIMITED
   Nodes=n[1-4]
   State=UP TotalCPUs=12 TotalNodes=4 SelectTypeParameters=NONE

PartitionName=old
   AllowGroups=ALL DenyAccounts=physics AllowQos=ALL
   Default=NO
   MaxNodes=UNLIMITED MaxTime=UNLIMITED MinNodes=0
   Nodes=n[1-4]
   State=DRAIN TotalCPUs=12 TotalNodes=4 SelectTypeParameters=NONE

"""
NODES = "".join(
    f"{partition}|n{number}|{state}|4+|1000|{features}|{gres}\n"
    for partition in ("main", "short", "old")
    for number, state, features, gres in (
        (1, "idle", "a100,ib", "gpu:a100:4(S:0-1)"),
        (2, "allocated", "a100", "gpu:a100:4(S:0-1)"),
        (3, "down*", "a100,ib", "gpu:a100:2"),
        (4, "idle", "(null)", "(null)"),
    )
)
CONFIG = "KillWait                = 30 sec\nClusterName             = tiny\n"
KNOWN = Declared(parse_settings(CONFIG), parse_partitions(PARTITIONS), parse_nodes(NODES))


def refusals(
    tmp_path: Path, hosts: int = 1, members: tuple[str, ...] | None = ("staff",), **options: Any
) -> list[str]:
    plan = replace(make_plan(tmp_path, *[4] * hosts), slurm=options)
    results = plan_results(plan, KNOWN, members)
    return [result.text for result in results if not (result.ok or result.is_advice)]


@pytest.mark.parametrize(
    ("hosts", "options", "words"),
    [
        (1, {"partition": "shrt"}, "there is no partition `shrt`; did you mean `short`?"),
        (1, {"partition": "old"}, "partition old: it is DRAIN, so no job begins there"),
        (1, {"partition": "short", "time": "25:00:00"}, "time: 25:00:00 is 25h00m, but its limit is 24h00m"),
        (3, {"partition": "short"}, "a job may have 2 hosts at most, and this one needs 3"),
        (1, {"partition": "short", "account": "physic"}, "account `physic` may not use it; did you mean"),
        (5, {}, "partition main: it has 4 hosts, and the job needs 5"),
        (3, {"gres": "gpu:4"}, "only 2 of its 4 hosts also have 4 GPUs, and the job needs 3"),
        (1, {"gres": "gpu:8"}, "only 0 of its 4 hosts also have 8 GPUs"),
        (3, {"constraint": "a100&ib"}, "only 2 of its 4 hosts also have `constraint: a100&ib`"),
        (1, {"constraint": "h100"}, "only 0 of its 4 hosts also have `constraint: h100`"),
        (1, {"mem": "2G"}, "only 0 of its 4 hosts also have 2G of memory"),
        (1, {"cpus_per_task": "5"}, "only 0 of its 4 hosts also have 5 CPUs"),
        (4, {"exclude": "n[1-2]"}, "only 2 of its 4 hosts remain without those in `exclude`"),
    ],
)
def test_a_job_that_could_never_begin_is_refused(
    tmp_path: Path, hosts: int, options: dict[str, str], words: str
) -> None:
    assert words in "\n".join(refusals(tmp_path, hosts, **options))


@pytest.mark.parametrize(
    ("hosts", "options"),
    [
        (4, {}),
        (2, {"partition": "short", "time": "1-0", "account": "physics", "gres": "gpu:4"}),
        (4, {"constraint": "[a100*2|ib*2]"}),
        (3, {"constraint": "a100|ib", "mem": "900"}),
        (3, {"partition": "short,main"}),
    ],
)
def test_a_job_that_can_begin_is_not_refused(tmp_path: Path, hosts: int, options: dict[str, str]) -> None:
    assert refusals(tmp_path, hosts, **options) == []


def test_groups_of_users_matter_except_for_root(tmp_path: Path) -> None:
    asked = {"partition": "short"}
    assert "only members of the groups staff, ops may use it" in refusals(tmp_path, 1, ("users",), **asked)[0]
    assert refusals(tmp_path, 1, None, **asked) == []


def test_each_group_of_a_heterogeneous_job_is_checked(tmp_path: Path) -> None:
    groups = [{"nnodes": 1, "gres": "gpu:4"}, {"nnodes": 1, "gres": "gpu:16"}]
    (text,) = refusals(tmp_path, 2, groups=groups)
    assert "16 GPUs" in text


def test_what_only_delays_a_job_is_advice(tmp_path: Path) -> None:
    plan = replace(make_plan(tmp_path, 4, 4, 4), slurm={"gres": "gpu:2"})
    advice = [result.text for result in plan_results(plan, KNOWN, None) if result.is_advice and not result.ok]
    assert len(advice) == 1
    assert advice[0].startswith(
        "partition main: 2 of 3 fitting hosts can be used, and the job needs 3: it waits"
    )


def test_a_shorter_kill_wait_than_the_grace_is_told(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, 1)
    patient = replace(plan, nodes=tuple(replace(node, stop_grace=120.0) for node in plan.nodes))
    texts = [result.text for result in plan_results(patient, KNOWN, None) if not result.ok]
    assert [text for text in texts if "after 30 s (KillWait), but its ranks may take 120 s" in text]


def test_a_run_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert folder_result(tmp_path / "new" / "run").ok
    assert "file is not a folder" in folder_result(tmp_path / "file" / "run").text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("1:30:00", 5400), ("1-12", 129600), ("1-0:30", 88200), ("x", None)],
)
def test_time_limits_are_read_as_sbatch_does(text: str, seconds: float | None) -> None:
    assert limit_seconds(text) == seconds


def test_memory_and_gpus_are_read_as_sbatch_does() -> None:
    assert [megabytes(text) for text in ("64G", "900", "1T", "512K", "?")] == [65536, 900, 1048576, 0.5, None]
    assert [gpus_of(text) for text in ("gpu:a100:4(S:0-1)", "gpu:2,nvme:3", "(null)")] == [4, 2, 0]


def test_a_real_cluster_declares_its_partitions_and_hosts(
    slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster.config.conf))
    known = ask()
    assert {partition.name: partition.max_time for partition in known.partitions} == {
        "main": None,
        "high": 3600,
    }
    assert [(host.name, host.cpus, host.memory, host.gpus) for host in known.hosts[:2]] == [
        ("n1", 4, 1000, 2),
        ("n1", 4, 1000, 2),
    ]
    assert known.hosts[0].features == ("tiny",)
    assert all(host.is_usable for host in known.hosts)
    assert (known.kill_wait, known.has_accounting) == (30, False)


def test_without_slurm_the_check_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    class Prepared:
        plan = make_plan(tmp_path, 1)

    results = check.check(Prepared())  # type: ignore[arg-type]
    assert [result.ok for result in results] == [True, False]
    assert results[1].text.startswith("no Slurm here: `scontrol` is not installed")
