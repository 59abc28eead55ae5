"""A runner with a queue: the status of a queued job, and the refusal of a second start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from flagscale import registry
from flagscale.config.schema import Runner
from flagscale.errors import FlagScaleError
from flagscale.plan.hosts import named_hosts
from flagscale.plan.runner import RunnerRules
from flagscale.run.logs import write_header
from flagscale.run.rundir import RunDir
from flagscale.runners.base import JobRunner, RunReport, all_scripts, recorded, runner_of, start_now
from flagscale.status.model import status_json
from flagscale.status.text import plan_text, status_text
from flagscale.status.watch import current_status, watch_job
from flagscale.values import Host, LaunchPlan, NodeCommand
from tests.unit.plans import host_status, make_experiment, make_job, make_plan, write_log

REPORTS: list[RunReport] = []
"""The next reports of the queue; the last one is repeated."""


def report(plan: LaunchPlan, count: bool) -> RunReport:
    return REPORTS.pop(0) if len(REPORTS) > 1 else REPORTS[0]


def scripts(plan: LaunchPlan) -> dict[Path, str]:
    return {Path(plan.exp_dir, "submit.sh"): "queue me\n"}


QUEUE = JobRunner(RunnerRules("queue", named_hosts, scripts=scripts), report=report)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LaunchPlan]:
    """The plan of a queued job, on one host that is not chosen yet; there are files of earlier runs."""
    monkeypatch.setitem(registry.BUILT_IN["runners"], "queue", f"{__name__}:QUEUE")  # type: ignore[index]
    monkeypatch.setattr("flagscale.status.watch.time.sleep", lambda seconds: None)
    made = make_plan(tmp_path, 1, run_id="now", type="queue")
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 9, "iteration_ms": 1, "time": 99}\n')
    REPORTS[:] = [queued(made, "2 jobs are ahead")]
    yield made
    REPORTS.clear()


def queued(plan: LaunchPlan, reason: str) -> RunReport:
    return RunReport(plan, [host_status(plan, 0, None)], "queued", reason)


def on(plan: LaunchPlan, name: str) -> LaunchPlan:
    """Return the plan as it is after the queue has chosen the host."""
    node: NodeCommand = plan.nodes[0]
    return replace(plan, nodes=(replace(node, host=Host(0, name, 4, "chip")),))


def test_a_queued_job_has_not_ended_and_shows_no_earlier_metrics(plan: LaunchPlan) -> None:
    status = current_status(plan)
    assert (status.phase, status.ended, status.exit_code, status.progress) == ("queued", False, 0, None)
    lines = status_text(status).splitlines()
    assert lines[0].startswith("demo: queued  (")
    assert lines[1:] == ["  2 jobs are ahead", "  host 0  localhost  queued"]
    reported = status_json(status)
    assert (reported["state"], reported["reason"]) == ("queued", "2 jobs are ahead")
    assert reported["hosts"][0]["state"] == "queued"


@pytest.mark.parametrize(("phase", "code"), [("stopped", 0), ("failed", 1)])
def test_a_job_that_ends_in_the_queue_has_that_phase(plan: LaunchPlan, phase: str, code: int) -> None:
    REPORTS[:] = [replace(REPORTS[0], phase=phase, reason="by its user")]  # type: ignore[arg-type]
    status = current_status(plan)
    assert (status.phase, status.ended, status.exit_code) == (phase, True, code)
    assert "by its user" in status_text(status)


@pytest.mark.parametrize("phase", ["starting", "stopping"])
def test_a_job_that_the_queue_keeps_has_not_ended_whatever_its_hosts_say(
    plan: LaunchPlan, phase: str
) -> None:
    REPORTS[:] = [RunReport(plan, [host_status(plan, 0, "stopped")], phase, "again")]  # type: ignore[arg-type]
    status = current_status(plan)
    assert (status.phase, status.ended) == (phase, False)
    RunDir(Path(plan.exp_dir)).plan.write_text(plan.to_json())
    refused = rf"run now of .* is {phase} \(again\); stop it first"
    with (
        pytest.raises(FlagScaleError, match=refused),
        recorded(prepared(plan), plan),  # type: ignore[arg-type]
    ):
        pass


def test_what_the_queue_adds_is_shown_to_people_and_programs(plan: LaunchPlan) -> None:
    REPORTS[:] = [replace(REPORTS[0], notes=["job 7: no time limit"], queue={"job_id": "7"})]
    status = current_status(plan)
    assert status_text(status).splitlines()[1:3] == ["  2 jobs are ahead", "  job 7: no time limit"]
    assert status_json(status)["queue"] == {"job_id": "7"}


def test_watch_continues_with_the_hosts_that_the_queue_chooses(
    plan: LaunchPlan, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = on(plan, "node7")
    ends = [host_status(chosen, 0, phase) for phase in ("running", "finished")]  # type: ignore[arg-type]
    reports = [queued(plan, "2 jobs are ahead"), queued(plan, "2 jobs are ahead"), queued(plan, "1 is ahead")]
    REPORTS[:] = [*reports, *(RunReport(chosen, [end]) for end in ends)]
    log = write_log(chosen, 0, "flagscale: of an earlier run\n")
    with log.open("ab") as file:
        write_header(file, "now", "node7", "2026-01-01 00:00:00")
    write_log(chosen, 0, "flagscale: checkpoint 1\n")
    status = watch_job(plan)
    assert (status.phase, status.plan) == ("finished", chosen)
    assert capsys.readouterr().out.splitlines() == [
        "queued: 2 jobs are ahead",
        "queued: 1 is ahead",
        "flagscale: checkpoint 1",
    ]


def prepared(plan: LaunchPlan) -> SimpleNamespace:
    """Return the part of a `Prepared` that `recorded` and `start_now` read; its job has a secret."""
    return SimpleNamespace(plan=plan, config="a: 1\n", job=make_job(1), experiment=make_experiment(Path("/")))


def test_a_submission_records_everything_that_dryrun_prints(plan: LaunchPlan) -> None:
    assert "queue me" in plan_text(plan, "")
    with recorded(prepared(plan), plan):  # type: ignore[arg-type]
        assert RunDir(Path(plan.exp_dir)).read_plan() == plan
        assert {path: path.read_text() for path in all_scripts(plan)} == all_scripts(plan)
    assert "geheim" in RunDir(Path(plan.exp_dir)).secrets(plan.hosts[0]).read_text()


def test_a_failed_submission_leaves_no_secrets(plan: LaunchPlan) -> None:
    with pytest.raises(ZeroDivisionError), recorded(prepared(plan), plan):  # type: ignore[arg-type]
        raise ZeroDivisionError
    assert not RunDir(Path(plan.exp_dir)).secrets(plan.hosts[0]).exists()


def test_no_runner_starts_a_job_while_another_is_queued(plan: LaunchPlan) -> None:
    with recorded(prepared(plan), plan):  # type: ignore[arg-type]
        pass
    other = make_plan(Path(plan.exp_dir), 1, run_id="other")
    refusal = r"run now of .* is queued \(2 jobs are ahead\); stop it first"
    with pytest.raises(FlagScaleError, match=refusal):
        start_now(prepared(other), other, None)  # type: ignore[arg-type]
    with pytest.raises(FlagScaleError, match=refusal), recorded(prepared(plan), plan):  # type: ignore[arg-type]
        pass
    assert RunDir(Path(plan.exp_dir)).read_plan() == plan


def test_a_misspelt_key_in_the_rules_is_reported_to_their_author() -> None:
    rules = RunnerRules("queue", named_hosts, refused={"hostfil": "the queue chooses the hosts"})
    with pytest.raises(
        ValueError, match=r"runner `queue`: .* unknown key `hostfil`; did you mean `hostfile`\?"
    ):
        rules.refusals(Runner(), str)


def test_a_runner_that_is_no_longer_installed_is_named(plan: LaunchPlan) -> None:
    with pytest.raises(
        FlagScaleError, match=r"plan\.json: unknown runner `quee`\n    did you mean `queue`\?"
    ):
        runner_of(replace(plan, runner="quee"))
