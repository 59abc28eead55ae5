"""The phase that follows from Slurm's answer, the record of a job and the states of its hosts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace as replaced
from typing import Any

import pytest

from flagscale.frozen import replace
from flagscale.remote.launcher import HostStatus
from flagscale.run.failure import Failure
from flagscale.run.state import HostState
from flagscale.runners.slurm.identity import Lookup, is_own
from flagscale.runners.slurm.ledger import Begin, Ledger
from flagscale.runners.slurm.outcome import Outcome, outcome
from flagscale.runners.slurm.records import JobRecord
from flagscale.values import Host

NOW = 1_800_000_000.0
BEGIN = Begin("7", 0, "run", ("n1", "n2"), NOW - 100)
KNOWN = Ledger("tiny", "7", "ada", "run", NOW - 200, "run", True, begins=(BEGIN,))
NOT_BEGUN = replace(KNOWN, begins=())


def record(state: str, **more: Any) -> JobRecord:
    made = JobRecord(
        job_id="7",
        user="ada",
        name="run",
        comment="",
        state=state,
        reason="",
        submit=NOW - 200,
        eligible=NOW - 200,
        start=NOW - 100,
        end=NOW - 60,
        time_limit=None,
        nodes=("n1", "n2"),
        node_count=2,
        restarts=0,
        exit_code="0:0",
        partition="main",
    )
    return replace(made, **more)


def hosts(*phases: str | None) -> list[HostStatus]:
    return [
        HostStatus(Host(rank, f"n{rank + 1}", 1, "cpu"), HostState("run", phase) if phase else None)  # type: ignore[arg-type]
        for rank, phase in enumerate(phases)
    ]


def found(known: Ledger, answer: JobRecord | Lookup | None, states: Sequence[HostStatus]) -> Outcome:
    lookup = answer if isinstance(answer, Lookup) else Lookup(answer)
    return outcome(known, lookup, states, NOW)


def phases(result: Outcome) -> list[str]:
    return [host.state.phase if host.state else "" for host in result.hosts]


@pytest.mark.parametrize(
    ("state", "reason", "words"),
    [
        ("PENDING", "Priority", "jobs of a higher priority come first"),
        ("PENDING", "JobHeldUser", "it is held: `scontrol release 7`"),
        ("PENDING", "PartitionTimeLimit", "so it never begins"),
        ("PENDING", "SomethingNew", "job 7 is in Slurm's queue (SomethingNew)"),
    ],
)
def test_a_waiting_job_is_queued_with_a_reason(state: str, reason: str, words: str) -> None:
    result = found(NOT_BEGUN, record(state, reason=reason, start=None), hosts(None, None))
    assert result.phase == "queued"
    assert words in result.reason


def test_an_expected_begin_is_told_unless_it_has_passed() -> None:
    later = found(NOT_BEGUN, record("PENDING", start=NOW + 60), hosts(None, None))
    assert "it is expected to begin at" in later.reason
    assert "expected" not in found(NOT_BEGUN, record("PENDING"), hosts(None, None)).reason


def test_a_requeued_job_says_why_and_from_when_it_can_begin_and_has_no_old_states() -> None:
    known = replace(KNOWN, begins=(replace(BEGIN, end="node lost", ended=NOW - 50),))
    waiting = record("PENDING", restarts=1, eligible=NOW + 71, start=NOW + 71)
    result = found(known, waiting, hosts("stopped", "stopped"))
    assert (result.phase, phases(result)) == ("queued", ["", ""])
    assert result.reason.startswith("a host was lost (")
    assert "it can begin at" in result.reason
    assert "expected" not in result.reason


@pytest.mark.parametrize("state", ["CONFIGURING", "RUNNING"])
def test_a_job_that_prepares_its_begin_is_starting(state: str) -> None:
    assert found(NOT_BEGUN, record(state), hosts(None, None)).phase == "starting"
    again = found(KNOWN, record(state, restarts=1), hosts("stopped", "stopped"))
    assert (again.phase, phases(again)) == ("starting", ["", ""])


def test_a_running_job_has_the_phase_of_its_hosts() -> None:
    result = found(KNOWN, record("RUNNING"), hosts("running", "running"))
    assert (result.phase, result.reason, phases(result)) == (None, "", ["running", "running"])


@pytest.mark.parametrize(
    ("end", "phase"),
    [("", "stopping"), ("time limit", "stopping"), ("node lost", "stopping"), ("finished", None)],
)
def test_a_job_that_may_requeue_itself_has_not_ended_with_its_hosts(end: str, phase: str | None) -> None:
    known = replace(KNOWN, requeues=True, begins=(replace(BEGIN, end=end),))
    assert found(known, record("RUNNING"), hosts("stopped", "stopped")).phase == phase
    assert (
        found(replace(known, stop_requested=NOW), record("RUNNING"), hosts("stopped", "stopped")).phase
        is None
    )
    assert found(replace(known, requeues=False), record("RUNNING"), hosts("stopped", "stopped")).phase is None


@pytest.mark.parametrize(("end", "phase"), [("time limit", "stopped"), ("failed", None)])
def test_a_job_that_was_cancelled_before_it_began_again_does_not_say_that_it_will(
    end: str, phase: str | None
) -> None:
    begin = replace(BEGIN, end=end, reason=f"{end} it is", ended=NOW - 70)
    known = replace(KNOWN, requeues=True, begins=(begin,), stop_requested=NOW - 65)
    result = found(known, record("CANCELLED", restarts=1), hosts("stopped", "stopped"))
    assert result.phase == phase
    assert ("it is" in result.reason) == (phase is None)


def test_ranks_that_were_stopped_because_the_jobs_program_was_killed_are_a_failure() -> None:
    killed = record("FAILED", reason="NonZeroExitCode", exit_code="0:9")
    result = found(KNOWN, killed, hosts("stopped", "stopped"))
    assert (result.phase, result.reason) == (
        "failed",
        "the job's program was ended before it could record why",
    )
    asked = replace(KNOWN, stop_requested=NOW - 70)
    assert found(asked, killed, hosts("stopped", "stopped")).phase is None
    assert found(KNOWN, killed, hosts("finished", "finished")).phase is None


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ("NODE_FAIL", "a host was lost"),
        ("OUT_OF_MEMORY", "a host ran out of the memory that the job had asked for"),
        ("TIMEOUT", "the job reached its time limit"),
    ],
)
def test_hosts_that_could_not_report_their_end_have_failed_for_slurms_reason(state: str, words: str) -> None:
    result = found(KNOWN, record(state), hosts("finished", "running"))
    assert phases(result) == ["finished", "failed"]
    failure = result.hosts[1].state and result.hosts[1].state.failure
    assert failure
    assert failure.message.startswith(words)
    assert "could not report its end" in failure.message


def test_hosts_of_a_cancelled_job_that_could_not_report_are_stopped() -> None:
    assert phases(found(KNOWN, record("CANCELLED"), hosts("stopped", "running"))) == ["stopped", "stopped"]


def test_the_last_states_may_become_visible_a_moment_after_the_end() -> None:
    states = hosts("running", "running")
    assert found(KNOWN, record("COMPLETED", end=NOW - 1), states).phase == "stopping"
    ended = replace(KNOWN, begins=(replace(BEGIN, end="failed"),))
    assert found(ended, record("FAILED", end=NOW - 1), states).phase is None
    assert found(KNOWN, record("COMPLETED", end=NOW - 11), states).phase is None


def test_a_job_cancelled_in_the_queue_is_stopped_and_one_that_could_not_start_has_failed() -> None:
    assert found(NOT_BEGUN, record("CANCELLED", nodes=()), hosts(None, None)).phase == "stopped"
    result = found(
        NOT_BEGUN, record("FAILED", reason="JobLaunchFailure", exit_code="0:53"), hosts(None, None)
    )
    assert result.phase == "failed"
    assert "because of its output file" in result.reason


def test_the_failure_of_a_rank_is_not_hidden_by_that_of_the_script() -> None:
    states = hosts("failed", "stopped")
    failed = states[0].state
    assert failed
    states[0] = replaced(states[0], state=failed.changed(failure=Failure("rank 0 broke")))
    result = found(KNOWN, record("FAILED", reason="NonZeroExitCode", exit_code="1:0"), states)
    assert (result.phase, result.reason) == (None, "")
    assert result.hosts[0].state == states[0].state


def test_a_forgotten_job_has_ended_as_its_hosts_say() -> None:
    result = found(KNOWN, None, hosts("finished", "finished"))
    assert (result.phase, result.reason) == (None, "")
    lost = found(KNOWN, None, hosts("finished", "running"))
    assert phases(lost) == ["finished", "failed"]
    assert lost.reason == "Slurm no longer knows job 7"
    stopped = found(replace(KNOWN, stop_requested=NOW), None, hosts("finished", "running"))
    assert phases(stopped) == ["finished", "stopped"]


def test_without_an_answer_the_files_tell_what_they_can() -> None:
    silent = Lookup(trouble="no answer")
    assert found(NOT_BEGUN, silent, hosts(None, None)).phase == "queued"
    assert found(KNOWN, silent, hosts(None, None)).phase == "starting"
    running = found(KNOWN, silent, hosts("running", "running"))
    assert (running.phase, phases(running)) == (None, ["running", "running"])
    assert running.reason == "no answer; what follows is what job 7 has recorded itself"


def test_a_step_in_someones_job_has_ended_if_that_job_waits_to_begin_again() -> None:
    someones = replace(KNOWN, is_ours=False)
    result = found(someones, record("PENDING", restarts=1), hosts("stopped", "running"))
    assert (result.phase, phases(result)) == (None, ["stopped", "failed"])


@pytest.mark.parametrize(
    ("changes", "is_the_same"),
    [({}, True), ({"user": "bob"}, False), ({"name": "other"}, False), ({"submit": NOW}, True)],
)
def test_our_job_is_recognized_by_its_user_and_its_run(changes: dict[str, Any], is_the_same: bool) -> None:
    assert is_own(KNOWN, record("RUNNING", **changes)) is is_the_same


@pytest.mark.parametrize(
    ("changes", "is_the_same"),
    [
        ({"name": "other"}, True),
        ({"submit": NOW}, False),
        ({"submit": NOW, "restarts": 1}, True),
        ({"user": "bob"}, False),
    ],
)
def test_someones_job_is_recognized_by_its_submission(changes: dict[str, Any], is_the_same: bool) -> None:
    assert is_own(replace(KNOWN, is_ours=False), record("RUNNING", **changes)) is is_the_same
