"""Which hosts are selected, and how many ranks run on each."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagscale.config.schema import Runner
from flagscale.config.source_map import SourceMap
from flagscale.errors import UserError
from flagscale.plan.hosts import select_hosts
from flagscale.plan.runner import LocalDevices
from flagscale.run.machine import is_local
from flagscale.runners.ssh import SSH
from flagscale.values import Host


@pytest.fixture
def hostfile(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        (tmp_path / "hosts").write_text(text)
        return str(tmp_path / "hosts")

    return write


def select(
    runner: Runner, platform: str, count: int, are_shared: bool, source_map: SourceMap | None = None
) -> tuple[Host, ...]:
    return select_hosts(SSH.rules, runner, LocalDevices(platform, count, are_shared), source_map)


def problems(runner: Runner, *args: Any) -> list[str]:
    with pytest.raises(UserError) as raised:
        select(runner, *args)
    return [f"{problem.where}: {problem.what}" for problem in raised.value.problems]


def test_without_a_hostfile_the_job_runs_on_this_host() -> None:
    assert select(Runner(), "nvidia", 8, False) == (Host(0, "localhost", 8, "nvidia"),)
    assert select(Runner(nproc_per_node=2), "nvidia", 8, False) == (Host(0, "localhost", 2, "nvidia"),)


def test_a_job_that_nobody_starts_may_have_any_number_of_hosts() -> None:
    devices = LocalDevices("nvidia", 0, False, only_plans=True, any_hosts=True)
    hosts = select_hosts(SSH.rules, Runner(nnodes=3, nproc_per_node=4), devices)
    assert hosts == tuple(Host(rank, f"host-{rank}", 4, "nvidia") for rank in range(3))
    with pytest.raises(UserError, match=r"give experiment\.runner\.nproc_per_node"):
        select_hosts(SSH.rules, Runner(nnodes=3), devices)


def test_standalone_is_for_one_host(tmp_path: Path) -> None:
    """As torchrun's argument: with several hosts, each would wait for the others at its own address."""
    (tmp_path / "hosts").write_text("a slots=1\nb slots=1\n")
    two = {"hostfile": str(tmp_path / "hosts"), "standalone": True}
    assert len(select(Runner(standalone=True), "cpu", 1, True)) == 1
    assert len(select(Runner(**two, per_node_task=True), "cpu", 1, True)) == 2
    (message,) = problems(Runner(**two), "cpu", 1, True)
    assert message == "experiment.runner.standalone: `standalone` means one host, but the job has 2"
    (message,) = problems(Runner(standalone=True, master_port=1), "cpu", 1, True)
    assert message == "experiment.runner.master_port: `standalone` and `master_port` contradict each other"


def test_ranks_may_share_cpus_but_not_gpus() -> None:
    assert select(Runner(nproc_per_node=4), "cpu", 1, True)[0].slots == 4
    (message,) = problems(Runner(nproc_per_node=4), "nvidia", 2, False)
    assert (
        message == "experiment.runner.nproc_per_node: nproc_per_node is 4, but this host has 2 nvidia devices"
    )
    (message,) = problems(Runner(), "nvidia", 0, False)
    assert message == "experiment.runner.platform: this host has no nvidia devices"


def test_hosts_keep_the_order_of_the_hostfile(hostfile: Callable[[str], str]) -> None:
    path = hostfile("b slots=8 type=A100\na slots=4\nc slots=8")
    assert select(Runner(hostfile=path), "nvidia", 0, False) == (
        Host(0, "b", 8, "A100"),
        Host(1, "a", 4, "nvidia"),
        Host(2, "c", 8, "nvidia"),
    )
    few = select(Runner(hostfile=path, nnodes=2, nproc_per_node=3), "nvidia", 0, False)
    assert [(host.name, host.slots) for host in few] == [("b", 3), ("a", 3)]


def test_a_range_of_hosts_starts_with_the_largest_number(hostfile: Callable[[str], str]) -> None:
    path = hostfile("b slots=8\na slots=8\nc slots=8")
    few = select(Runner(hostfile=path, nnodes="1:2"), "nvidia", 0, False)
    assert [host.name for host in few] == ["b", "a"]
    (message,) = problems(Runner(hostfile=path, nnodes="1:4"), "nvidia", 0, False)
    assert message.startswith("experiment.runner.nnodes: nnodes is 4, but ")
    assert message.endswith("hosts has 3")


def test_a_range_requires_equal_hosts(hostfile: Callable[[str], str]) -> None:
    path = hostfile("b slots=2\na slots=4\nc slots=2")
    (message,) = problems(Runner(hostfile=path, nnodes="1:3"), "nvidia", 0, False)
    assert message.startswith("experiment.runner.nnodes: any host may be left out")
    assert len(select(Runner(hostfile=path, nnodes="1:3", nproc_per_node=2), "nvidia", 0, False)) == 3


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ([], [], "bac"),
        (["c", "b"], [], "bc"),
        ([], ["b"], "ac"),
        (["a", "b"], ["b"], "a"),
        (["A,c"], [], "ac"),
    ],
)
def test_hosts_are_included_and_excluded_by_name(
    hostfile: Callable[[str], str], include: list[str], exclude: list[str], left: str
) -> None:
    runner = Runner(hostfile=hostfile("b slots=1\na slots=2\nc slots=3"), include=include, exclude=exclude)
    found = select(runner, "cpu", 1, True)
    # In the order of the hostfile, and with consecutive ranks.
    assert [(host.rank, host.name) for host in found] == list(enumerate(left))


def test_all_names_missing_from_the_hostfile_are_reported_together(hostfile: Callable[[str], str]) -> None:
    runner = Runner(hostfile=hostfile("node10 slots=1\nnode11 slots=1"), include=["nod10"], exclude=["x"])
    with pytest.raises(UserError) as raised:
        select(runner, "cpu", 1, True)
    one, two = raised.value.problems
    assert (one.where, one.what) == ("experiment.runner.include", "`nod10` is not in the hostfile")
    assert one.hint == "did you mean `node10`?"
    assert (two.where, two.hint) == ("experiment.runner.exclude", "valid: node10, node11")


def test_ranges_are_included_and_excluded(hostfile: Callable[[str], str]) -> None:
    path = hostfile("node[01-12] slots=1")
    found = select(Runner(hostfile=path, include=["node[03-06]"], exclude=["node[05,06]"]), "cpu", 1, True)
    assert [host.name for host in found] == ["node03", "node04"]
    (message,) = problems(Runner(hostfile=path, exclude=["node[4-1]"]), "cpu", 1, True)
    assert message.startswith("experiment.runner.exclude: `node[4-1]`: 4-1 counts down")


def test_excluding_every_host_is_an_error(hostfile: Callable[[str], str]) -> None:
    path = hostfile("a slots=1\nb slots=1")
    (message,) = problems(Runner(hostfile=path, exclude=["a", "b"]), "cpu", 1, True)
    what = "`include` and `exclude` leave no hosts of the hostfile"
    assert message == f"experiment.runner.exclude: {what}"
    (message,) = problems(Runner(hostfile=path, exclude=["a"], nnodes=2), "cpu", 1, True)
    assert "nnodes is 2, but" in message


def test_too_few_hosts_and_slots_are_reported_together(hostfile: Callable[[str], str]) -> None:
    path = hostfile("b slots=8\na slots=4\nc slots=2")
    found = problems(Runner(hostfile=path, nnodes=5, nproc_per_node=8), "nvidia", 0, False)
    assert len(found) == 3
    assert "nnodes is 5, but" in found[0]
    assert "`a` has 4 slots, but nproc_per_node is 8" in found[1]
    assert "`c` has 2 slots" in found[2]


def test_several_hosts_need_a_hostfile() -> None:
    (message,) = problems(Runner(nnodes=2), "cpu", 1, True)
    assert message.endswith("nnodes is 2, but there is no hostfile")


def test_a_missing_hostfile_is_reported_at_its_key(tmp_path: Path) -> None:
    where = SourceMap({"experiment.runner.hostfile": "conf.yaml:9"})
    (message,) = problems(Runner(hostfile=str(tmp_path / "hosts")), "cpu", 1, True, where)
    assert message.startswith("conf.yaml:9: experiment.runner.hostfile: hostfile not found: ")


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "::1", socket.gethostname()])
def test_names_of_this_host_are_local(name: str) -> None:
    assert is_local(name)


def test_another_host_is_not_local() -> None:
    assert not is_local("worker17.example.org")
