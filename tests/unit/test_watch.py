"""Watching a job, and reading its growing logs without reading more than needed."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import pytest

from flagscale.remote import launcher
from flagscale.remote.launcher import HostStatus
from flagscale.run import logs as output
from flagscale.run.failure import Failure
from flagscale.run.logs import find_run, last_lines, write_header
from flagscale.run.state import Phase, Reply
from flagscale.status import log_tail as tail_module
from flagscale.status import watch as follow_module
from flagscale.status.log_tail import LogTail
from flagscale.status.model import status_json
from flagscale.status.watch import current_status, statuses, watch_job
from flagscale.values import LaunchPlan, Service
from tests.unit.plans import FakeHosts, host_status, make_plan, write_log


@pytest.fixture
def plan(tmp_path: Path) -> LaunchPlan:
    return make_plan(tmp_path, 2, run_id="now")


def header(path: Path, run_id: str) -> None:
    with path.open("ab") as file:
        write_header(file, run_id, "localhost", "2026-01-01 00:00:00")


def test_each_line_is_returned_once_and_complete(plan: LaunchPlan) -> None:
    tail = LogTail(plan)
    assert list(tail.lines()) == []
    write_log(plan, 0, "one\ntw")
    assert list(tail.lines()) == ["one"]
    write_log(plan, 0, "o\n\nthree ü\r\n")
    assert list(tail.lines()) == ["two", "", "three ü\r"]
    assert list(tail.lines()) == []


def test_a_log_that_was_emptied_is_read_from_its_start(plan: LaunchPlan) -> None:
    tail = LogTail(plan)
    path = write_log(plan, 0, "a long line\n")
    assert list(tail.lines()) == ["a long line"]
    path.write_text("new\n")
    assert list(tail.lines()) == ["new"]


def test_large_logs_are_read_in_chunks(plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail_module, "_CHUNK", 16)
    lines = [f"line {number}" for number in range(100)]
    write_log(plan, 0, "\n".join(lines) + "\n" + "x" * 40 + "\nlast\n")
    found = list(LogTail(plan).lines())
    assert found[:100] == lines
    # A line longer than a chunk is returned in pieces; nothing is lost.
    assert "".join(found[100:-1]) == "x" * 40
    assert found[-1] == "last"


def test_lines_of_several_hosts_have_the_host_name_in_front(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, 1, 1)
    write_log(plan, 1, "from one\n")
    write_log(plan, 0, "from zero\n")
    assert list(LogTail(plan).lines()) == ["node0: from zero", "node1: from one"]


def test_earlier_runs_are_skipped(plan: LaunchPlan) -> None:
    path = write_log(plan, 0, "")
    for run_id in ("before", "now"):
        header(path, run_id)
        write_log(plan, 0, f"of {run_id}\nhalf a line")
    tail = LogTail(plan)
    tail.skip_earlier_runs()
    assert list(tail.lines()) == ["=== run now on localhost, 2026-01-01 00:00:00", "of now"]
    assert "half a line\n=== run now " in path.read_text()
    assert list(tail.lines(last=True)) == ["half a line"], "a killed process ends within a line"


def test_a_run_without_a_header_does_not_show_earlier_runs(plan: LaunchPlan) -> None:
    path = write_log(plan, 0, "")
    header(path, "before")
    tail = LogTail(plan)
    tail.skip_earlier_runs()
    assert list(tail.lines()) == []
    header(path, "now")
    assert len(list(tail.lines())) == 1


@pytest.mark.parametrize("chunk", [1, 7, 64, 4096])
def test_a_run_is_found_for_any_chunk_size(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(output, "_CHUNK", chunk)
    path = write_log(plan, 0, "before\n" * 10)
    where = path.stat().st_size
    header(path, "now")
    write_log(plan, 0, "after\n" * 10)
    assert find_run(path, "now") == where
    assert find_run(path, "no") is None
    assert find_run(path.with_name("none"), "now") is None


def test_the_last_lines_are_only_those_of_this_run(plan: LaunchPlan) -> None:
    path = write_log(plan, 0, "before\n")
    assert last_lines(path, "now", 3) == ""
    header(path, "now")
    assert last_lines(path, "now", 3) == ""
    write_log(plan, 0, "one\ntwo\n")
    assert last_lines(path, "now", 3) == "one\ntwo\n"
    write_log(plan, 0, "3\n4\n5")
    assert last_lines(path, "now", 3) == "3\n4\n5"
    write_log(plan, 0, "x" * 100_000 + "\nend\n")
    assert last_lines(path, "now", 3) == "end\n"


def script(monkeypatch: pytest.MonkeyPatch, plan: LaunchPlan, *phases: Phase) -> list[bool]:
    """Make the hosts report these phases in turn; return whether each call asked to count processes."""
    counted: list[bool] = []
    metrics: list[str] = []
    answers = iter(phases)

    def status(_: LaunchPlan, *, count: bool) -> list[HostStatus]:
        counted.append(count)
        phase = next(answers)
        metrics.append(f'{{"iteration": {len(counted) // 2}, "iteration_ms": 1, "time": 200}}\n')
        Path(plan.exp_dir, "metrics.jsonl").write_text("".join(metrics))
        write_log(plan, 0, f"noise\n[default0]:flagscale: checkpoint {len(counted)}\n")
        return [host_status(plan, 0, phase, Failure("boom") if phase == "failed" else None)]

    monkeypatch.setattr(launcher, "status", status)
    monkeypatch.setattr(follow_module.time, "sleep", lambda seconds: None)
    return counted


def test_watch_prints_lines_in_a_pipe(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    counted = script(monkeypatch, plan, "starting", "running", "running", "failed")
    found = watch_job(plan)
    assert (found.phase, found.exit_code) == ("failed", 1)
    assert capsys.readouterr().out.splitlines() == [
        "flagscale: checkpoint 1",
        "iteration 0",
        "flagscale: checkpoint 2",
        "iteration 1",
        "flagscale: checkpoint 3",
        "flagscale: checkpoint 4",
        "iteration 2",
    ]
    # Processes are not counted, because this may run twice a second for weeks.
    assert counted == [False] * 4


def test_watch_shows_progress_in_a_terminal(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script(monkeypatch, plan, "running", "running", "finished")
    monkeypatch.setattr(follow_module.sys.stdout, "isatty", lambda: True, raising=False)
    assert watch_job(plan).phase == "finished"
    out = capsys.readouterr().out
    assert "flagscale: checkpoint 2" in out
    assert "iteration 1" in out


def test_a_single_status_counts_processes_and_ignores_earlier_metrics(
    plan: LaunchPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(plan.exp_dir, "metrics.jsonl").write_text('{"iteration": 9, "iteration_ms": 1, "time": 99}\n')
    monkeypatch.setattr(
        launcher,
        "status",
        lambda plan, count: [host_status(plan, 0, "running", processes=int(count))],
    )
    found = current_status(plan)
    assert found.progress is None
    assert found.hosts[0].processes == 1


LOST = "no answer from node1 port 22 within 10 s"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes only during `sleep`."""
    now = [1000.0]
    monkeypatch.setattr(follow_module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(follow_module.time, "sleep", lambda seconds: now.append(now.pop() + seconds))


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("first", ["failed", "finished"])
def test_a_host_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: Phase
) -> None:
    plan = make_plan(tmp_path, 1, 1)
    hosts = [host_status(plan, 0, first), host_status(plan, 1, None, trouble=LOST)]
    monkeypatch.setattr(launcher, "status", lambda plan, count: hosts)
    reported: list[str] = []
    found = list(statuses(plan, reported.append))
    assert reported == [f"node1: {LOST}"]
    assert [status.ended for status in found] == [False] * 31 + [True]
    assert (found[-1].phase, found[-1].exit_code) == ("failed" if first == "failed" else "unknown", 1)


@pytest.mark.usefixtures("clock")
def test_a_host_may_finish_its_own_service_long_before_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path, 1, 1)
    services = (Service("engine", ("generate",)),)
    plan = replace(plan, nodes=tuple(replace(node, services=services) for node in plan.nodes))
    one = [host_status(plan, 0, "finished"), host_status(plan, 1, None, trouble=LOST)]
    both = [host_status(plan, rank, "finished") for rank in (0, 1)]
    looks = iter([*[one] * 100, both])
    monkeypatch.setattr(launcher, "status", lambda plan, count: next(looks))
    *before, last = statuses(plan, lambda line: None)
    assert (len(before), last.phase) == (100, "finished")


@pytest.mark.usefixtures("clock")
def test_hosts_that_answer_again_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No host is given up before one has ended: this machine itself may be cut off."""
    plan = make_plan(tmp_path, 1, 1)
    lost = [host_status(plan, rank, None, trouble=LOST) for rank in (0, 1)]
    both = [host_status(plan, rank, "running") for rank in (0, 1)]
    ended = [host_status(plan, rank, "finished") for rank in (0, 1)]
    one = [ended[0], lost[1]]
    looks = iter([both, *[lost] * 100, both, *[one] * 20, both, *[one] * 20, ended])
    monkeypatch.setattr(launcher, "status", lambda plan, count: next(looks))
    reported: list[str] = []
    *before, last = statuses(plan, reported.append)
    assert (last.phase, last.exit_code, any(status.ended for status in before)) == ("finished", 0, False)
    assert reported == [f"node0: {LOST}", f"node1: {LOST}", f"node1: {LOST}", f"node1: {LOST}"]


def test_metrics_are_read_from_the_last_host_that_takes_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path, 1, 1, 1, no_shared_fs=True)
    asked = FakeHosts(monkeypatch, node1={"read": {"data": "", "size": 0}})
    hosts = [host_status(plan, rank, "running") for rank in range(3)]
    state = hosts[0].state
    assert state
    hosts[0] = replace(hosts[0], state=state.changed(members=(0, 1)))
    monkeypatch.setattr(launcher, "status", lambda plan, count: hosts)
    found = status_json(current_status(plan))
    assert asked.verbs("node1") == ["read"]
    assert [host["state"] for host in found["hosts"]] == ["running", "running", "left out"]


def test_an_unreadable_log_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(tmp_path, 1, 1, no_shared_fs=True)
    text = base64.b64encode(b"a line\n").decode()
    away: Reply = {"ok": False, "message": LOST, "unreachable": True}
    answers: Reply = {"begin": {"position": 0}, "read": {"data": text, "size": 7}}
    hosts = FakeHosts(monkeypatch, node0=answers, node1={"begin": away, "read": away})
    tail = LogTail(plan)
    tail.skip_earlier_runs()
    lines = tail.lines()
    assert next(lines) == "node0: a line"
    answers["read"] = hosts.answers["node0"]["read"] = {"data": "", "size": 7}
    assert list(lines) == []
    assert tail.troubles == {plan.hosts[1]: LOST}
    # Once the host is back, its log is read from the beginning of the run.
    hosts.answers["node1"] = {"begin": {"position": 3}, "read": lambda words: reply(words, text)}
    assert list(tail.lines()) == ["node1: ine"]
    assert tail.troubles == {}


def reply(words: list[str], text: str) -> Reply:
    whole = base64.b64decode(text)
    position, size = int(words[5]), int(words[6])
    return {"data": base64.b64encode(whole[position : position + size]).decode(), "size": len(whole)}
