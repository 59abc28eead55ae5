"""What Slurm says about the allocation that a command runs in."""

from __future__ import annotations

import pytest

from flagscale.config.schema import Runner
from flagscale.errors import FlagScaleError, UserError
from flagscale.plan.runner import LocalDevices
from flagscale.runners.slurm import allocation as module
from flagscale.runners.slurm import runner as slurm
from flagscale.runners.slurm.allocation import AllocatedHost, addresses, allocation, parse_allocation
from flagscale.runners.slurm.commands import SlurmRefused

RECORD = """JobId={id} JobName=mine
   UserId=ada(1000) GroupId=ada(1000) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=2 BatchFlag=0 Reboot=0 ExitCode=0:0
   SubmitTime=1700000000 EligibleTime=1700000000
   StartTime=1700000100 EndTime=Unknown Deadline=N/A
   NodeList={nodes}
   NumNodes=2 NumCPUs=4 NumTasks=2 CPUs/Task=2 ReqB:S:C:T=0:0:*:*
{details}
   Comment=   Nodes=n1 CPU_IDs=0 Mem=0 GRES=gpu:9
"""
SAME = RECORD.format(
    id=7, nodes="n[1-2]", details="     Nodes=n[1-2] CPU_IDs=0-1 Mem=200 GRES=gpu:a100:2(IDX:0-1)"
)
DIFFERENT = RECORD.format(
    id=7,
    nodes="n[1-2]",
    details="     Nodes=n1 CPU_IDs=0-1 Mem=200 GRES=gpu:a100:2(IDX:0-1),gpu:h100:1(IDX:2)\n"
    "     Nodes=n2 CPU_IDs=0-1 Mem=200 GRES=nic:4(IDX:0-3)",
)
INSIDE = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
NODES = (
    "NodeName=n1 Arch=x86_64 NodeAddr=10.0.0.1 Port=1\nNodeName=n2 Arch=x86_64 NodeAddr=n2.cluster Port=1\n"
)


def where(key: str) -> str:
    return f"x.yaml: {key}"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What `scontrol ... show KIND` answers, by kind; this process is inside job 7."""
    found = {"job": SAME, "node": NODES}
    monkeypatch.setattr(module, "call", lambda *words: found[words[3]])
    for name, value in INSIDE.items():
        monkeypatch.setenv(name, value)
    return found


def test_hosts_have_the_gpus_that_slurm_gave_on_each() -> None:
    assert parse_allocation(SAME).hosts == (AllocatedHost("n1", 2), AllocatedHost("n2", 2))
    assert parse_allocation(DIFFERENT).hosts == (AllocatedHost("n1", 3), AllocatedHost("n2", 0))
    assert (parse_allocation(SAME).job_id, parse_allocation(SAME).restarts) == ("7", 2)


def test_the_components_of_a_heterogeneous_job_are_one_allocation() -> None:
    leader = SAME.replace("JobId=7", "JobId=7 HetJobId=7 HetJobOffset=0")
    other = RECORD.format(id=8, nodes="m1", details="     Nodes=m1 CPU_IDs=0 Mem=200 GRES=gpu:4(IDX:0-3)")
    found = parse_allocation(leader + "\n" + other.replace("JobId=8", "JobId=8 HetJobId=7 HetJobOffset=1"))
    assert found.hosts == (
        AllocatedHost("n1", 2, 0),
        AllocatedHost("n2", 2, 0),
        AllocatedHost("m1", 4, 1),
    )
    assert (found.job_id, found.components) == ("7", ("7", "8"))


def test_outside_an_allocation_slurm_is_not_asked() -> None:
    assert allocation({}) is None
    assert allocation({"SLURM_JOB_ID": "7"}) is None


def test_an_allocation_that_is_over_is_named(
    answers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers["job"] = SAME.replace("JobState=RUNNING", "JobState=COMPLETED")
    with pytest.raises(FlagScaleError, match=r"SLURM_JOB_ID is 7, a job without hosts \(COMPLETED\)"):
        allocation(INSIDE)

    def forgotten(*words: str) -> str:
        raise SlurmRefused("refused", "Invalid job id specified")

    monkeypatch.setattr(module, "call", forgotten)
    with pytest.raises(FlagScaleError, match="a job that Slurm no longer knows; leave the shell"):
        allocation(INSIDE)


def test_addresses_are_those_of_the_nodes(answers: dict[str, str]) -> None:
    assert addresses(["n1", "n2"]) == {"n1": "10.0.0.1", "n2": "n2.cluster"}


def lines(keys: dict[str, object], *, are_shared: bool = False) -> list[tuple[str, int]]:
    runner = Runner.model_validate({"type": "slurm", **keys})
    found = slurm.hosts(runner, LocalDevices("x", 0, are_shared=are_shared), where)
    return [(line.name, line.slots) for line in found]


def test_ranks_are_as_given_or_one_per_gpu_or_one(answers: dict[str, str]) -> None:
    assert lines({}) == [("n1", 2), ("n2", 2)]
    assert lines({"nproc_per_node": 1}) == [("n1", 1), ("n2", 1)]
    assert lines({"nproc_per_node": 8}, are_shared=True) == [("n1", 8), ("n2", 8)]
    answers["job"] = DIFFERENT
    assert lines({}, are_shared=True) == [("n1", 3), ("n2", 1)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"nproc_per_node": 3}, "nproc_per_node is 3, but Slurm has given 2 GPUs on n1"),
        ({"nnodes": 3}, "nnodes is 3, but job 7 of Slurm has 2 hosts"),
    ],
)
def test_more_than_slurm_has_given_is_refused(
    answers: dict[str, str], keys: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        lines(keys)


def test_a_host_without_gpus_needs_a_number_of_ranks(answers: dict[str, str]) -> None:
    answers["job"] = DIFFERENT
    with pytest.raises(UserError, match="Slurm has given no GPUs on n2"):
        lines({})


def test_keys_of_other_runners_have_no_effect_and_are_named(answers: dict[str, str]) -> None:
    rules = slurm.SLURM.rules
    runner = Runner.model_validate(
        {"type": "slurm", "platform": "x", "hostfile": "h", "ssh_port": 3, "slurm": {"partition": "p"}}
    )
    notices = rules.notices(runner, INSIDE, where)
    assert [line.split(": ")[1].removeprefix("experiment.runner.") for line in notices] == [
        "hostfile",
        "ssh_port",
        "slurm",
    ]
    assert len(rules.notices(runner, {}, where)) == 2
    resolved = slurm.resolve(runner, INSIDE, where)
    assert (resolved.hostfile, resolved.ssh_port) == (None, None)


def test_keys_of_slurm_have_no_effect_elsewhere() -> None:
    from flagscale.runners.ssh import SSH

    runner = Runner.model_validate({"slurm": {"partition": "p"}})
    assert SSH.rules.notices(runner, {}, where) == [
        "x.yaml: experiment.runner.slurm: `slurm` has no effect with type: ssh: "
        "only type: slurm asks Slurm for anything"
    ]
    assert SSH.rules.notices(Runner(), {}, where) == []
