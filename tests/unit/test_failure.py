"""The cause of a run's end, and the log files that explain it."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from flagscale.run.failure import Failure, first_failure, for_lack_of_memory
from flagscale.run.logs import has_error, rank_logs
from flagscale.values import LaunchPlan
from tests.unit.plans import make_plan, write_log

TOLD = {
    "rank": 5,
    "local_rank": 1,
    "pid": 77,
    "exitcode": 1,
    "signal": None,
    "message": "ValueError: no",
    "traceback": "Traceback ...",
    "time": 12.5,
    "a later field": "is ignored",
}


@pytest.fixture
def plan(tmp_path: Path) -> LaunchPlan:
    plan = make_plan(tmp_path / "a run", 2, run_id="now-[1]")
    Path(plan.nodes[0].failure_file).parent.mkdir(parents=True)
    return plan


def stream(
    plan: LaunchPlan, run: str, attempt: int, rank: int, name: str = "stderr.log", age: int = 0
) -> Path:
    folder = Path(plan.exp_dir, "logs/details/host_0_localhost", run)
    path = folder / f"attempt_{attempt}" / str(rank) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    os.utime(folder, (1000 - age, 1000 - age))
    return path


def test_the_reported_rank_is_the_cause(plan: LaunchPlan) -> None:
    Path(plan.nodes[0].failure_file).write_text(json.dumps(TOLD))
    failure = first_failure(plan, plan.nodes[0], 1)
    assert (failure.rank, failure.pid, failure.message, failure.time) == (5, 77, "ValueError: no", 12.5)
    assert failure.log == ""
    stream(plan, "now-[1]_abc", 0, 1, "stdout.log")
    stderr = stream(plan, "now-[1]_abc", 0, 1)
    assert first_failure(plan, plan.nodes[0], 1).log == str(stderr)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "3", '{"rank": 1}'])
def test_without_a_reported_rank_the_agent_is_the_cause(plan: LaunchPlan, text: str | None) -> None:
    if text is not None:
        Path(plan.nodes[0].failure_file).write_text(text)
    write_log(
        plan, 0, "of an earlier run\n=== run now-[1] on localhost, today\ntorchrun: error: no such option\n"
    )
    failure = first_failure(plan, plan.nodes[0], 2)
    assert (failure.message, failure.exitcode, failure.rank) == (
        "the agent ended with exit code 2",
        2,
        None,
    )
    assert failure.traceback == "torchrun: error: no such option\n"
    assert failure.time > 0


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (11, "SIGSEGV"), (40, "signal 40")])
def test_a_signal_needs_no_traceback(plan: LaunchPlan, number: int, name: str) -> None:
    write_log(plan, 0, "=== run now-[1] on localhost, today\nharmless\n")
    failure = first_failure(plan, plan.nodes[0], -number)
    assert (failure.message, failure.signal) == (f"the agent was killed by {name}", name)
    assert failure.traceback == ""


def test_rank_logs_are_those_of_the_newest_attempt(plan: LaunchPlan) -> None:
    assert rank_logs(plan.nodes[0]) == {}
    stream(plan, "another_abc", 0, 0)
    stream(plan, "now-[1]_old", 0, 0, age=10)
    assert [path.parts[-4] for path in rank_logs(plan.nodes[0])[0]] == ["now-[1]_old"]
    for attempt in (0, 2, 10):
        stream(plan, "now-[1]_new", attempt, 0)
    stream(plan, "now-[1]_new", 2, 1, "stdout.log")
    stream(plan, "now-[1]_new", 2, 1)
    (Path(plan.exp_dir) / "logs/details/host_0_localhost/now-[1]_new/attempt_2/filtered_stdout.log").touch()
    found = rank_logs(plan.nodes[0])
    assert list(found) == [0, 1]
    assert [path.parts[-3:] for path in found[0]] == [("attempt_10", "0", "stderr.log")]
    assert [path.name for path in found[1]] == ["stdout.log", "stderr.log"]


def test_rank_logs_with_a_configured_folder_and_id(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, 2, log_dir=str(tmp_path / "mine"), rdzv_id="id")
    path = tmp_path / "mine" / "id_x" / "attempt_0" / "0" / "stdout.log"
    path.parent.mkdir(parents=True)
    path.touch()
    assert rank_logs(plan.nodes[0]) == {0: (path,)}


def test_an_agent_other_than_torchrun_has_no_rank_logs(tmp_path: Path) -> None:
    node = replace(make_plan(tmp_path, 2).nodes[0], argv=("python", "-m", "another"), options={})
    assert rank_logs(node) == {}
    assert not has_error(node)


def test_an_exception_that_a_rank_has_recorded_is_found(tmp_path: Path) -> None:
    plan = make_plan(tmp_path, 2)
    node = plan.nodes[0]
    assert not has_error(node)
    log = Path(node.options["log-dir"]) / f"{plan.run_id}_abc" / "attempt_0" / "1" / "stderr.log"
    log.parent.mkdir(parents=True)
    log.touch()
    assert not has_error(node)
    (log.parent / "error.json").touch()
    assert has_error(node)


def test_lack_of_memory_is_named_once() -> None:
    killed = for_lack_of_memory(Failure("`chat.1` was killed by SIGKILL", signal="SIGKILL"))
    assert killed.message == (
        "`chat.1` was killed by SIGKILL: the kernel killed it because this host ran out of memory"
    )
    assert for_lack_of_memory(killed) == killed
    # Its engine was killed, and the server ended because of that.
    ended = for_lack_of_memory(Failure("`chat.1` ended with exit code 0: EngineDeadError"))
    assert ended.message.endswith("the kernel killed a process because this host ran out of memory")
