"""Servers and batches on one host: their supervisor starts, watches and ends them together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from http import HTTPStatus
from pathlib import Path

import psutil
import pytest

from flagscale.node import health, processes
from flagscale.node.devices import device_environment
from flagscale.remote import launcher
from flagscale.run.rundir import RunDir
from flagscale.run.state import ServiceState
from flagscale.start import until_ready
from flagscale.status.model import JobStatus
from flagscale.status.text import status_text
from flagscale.status.watch import current_status, watch_services
from flagscale.values import LaunchPlan, Service
from flagscale_testing.jobs.plans import SERVER
from flagscale_testing.ports import free_port
from tests.node.conftest import FakeJob, wait_for

MakeJob = Callable[..., FakeJob]
Programs = Callable[..., FakeJob]


@pytest.fixture
def services(make_job: MakeJob) -> Programs:
    """A function that makes a job with one server per list of behaviours; `batch` makes services that end."""

    def make(*behaviours: list[str], batch: bool = False, **changes: object) -> FakeJob:
        job = make_job(task_type="inference" if batch else "serve", **changes)
        names = [f"one.{number}" for number in range(len(behaviours))]
        made = [
            Service(
                name=name,
                argv=(sys.executable, "-S", str(SERVER), str(port), *reported),
                url="" if batch else f"http://127.0.0.1:{port}",
                model="m",
                env={"CUDA_VISIBLE_DEVICES": str(number)},
            )
            for number, (name, reported, port) in enumerate(
                [(name, behaves, free_port()) for name, behaves in zip(names, behaviours, strict=True)]
            )
        ]
        plan = job.plan
        words = ("-m", "flagscale.node", "services", plan.exp_dir, "0", plan.run_id)
        node = replace(plan.nodes[0], argv=(sys.executable, *words), services=tuple(made))
        return replace(job, plan=replace(plan, nodes=(node,)))

    return make


def states(plan: LaunchPlan) -> list[ServiceState]:
    return [state for _, state in current_status(plan).services]


def is_ready(plan: LaunchPlan) -> bool:
    return current_status(plan).phase == "running"


def pid(job: FakeJob, number: int) -> int:
    return states(job.plan)[number].pid


def test_a_job_runs_once_all_servers_have_answered(
    services: Programs, capsys: pytest.CaptureFixture[str], decoys: list[psutil.Process]
) -> None:
    job = services([], ["late:2", "child"]).start({"VLLM_API_KEY": "geheim"})
    assert current_status(job.plan).phase == "starting"
    status = watch_services(job.plan, lambda status: status.phase != "starting")
    assert status.phase == "running"
    assert "starting" in capsys.readouterr().out
    wait_for(lambda: states(job.plan)[0].tokens_per_s, 15)
    first = states(job.plan)[0]
    assert (first.phase, first.requests_running, first.requests_waiting) == ("ready", 3, 4)
    assert first.tokens_per_s == pytest.approx(100, rel=0.9)
    text = status_text(current_status(job.plan))
    assert first.url in text
    assert "3 running, 4 waiting" in text
    log = job.log()
    assert "[one.0] key geheim device 0\n" in log
    assert "[one.1] key geheim device 1\n" in log
    assert RunDir(Path(job.plan.exp_dir)).service_log(job.host, "one.1").read_text() in log.replace(
        "[one.1] ", ""
    )
    assert job.stop()["ok"]
    assert job.is_gone()
    assert current_status(job.plan).phase == "stopped"
    assert [state.phase for state in states(job.plan)] == ["stopped", "stopped"]


def test_a_server_is_not_ready_because_another_one_answers_on_its_port(services: Programs) -> None:
    job = services(["late:60"])
    url = job.plan.nodes[0].services[0].url
    other = subprocess.Popen([sys.executable, "-S", str(SERVER), url.rpartition(":")[2]])
    try:
        wait_for(lambda: health.check(url) == HTTPStatus.OK, 20)
        job.start()
        wait_for(lambda: job.state().phase == "failed", 20)
    finally:
        other.kill()
        other.wait()
    failure = job.state().failure
    assert failure is not None
    assert failure.message == (
        f"`one.0` was killed: another process answers at {url}; end it, or use another port"
    )
    assert [(state.phase, state.requests_running) for state in states(job.plan)] == [("failed", None)]


def test_a_killed_server_ends_all_of_them(services: Programs, decoys: list[psutil.Process]) -> None:
    job = services(["child"], []).start()
    wait_for(lambda: is_ready(job.plan), 20)
    os.kill(pid(job, 0), signal.SIGKILL)
    wait_for(lambda: job.state().phase == "failed", 20)
    wait_for(job.is_gone)
    failure = job.state().failure
    assert failure is not None
    assert failure.message == "`one.0` was killed by SIGKILL"
    assert [state.phase for state in states(job.plan)] == ["failed", "stopped"]


@pytest.mark.parametrize("member", ["engine", "supervisor"])
def test_nothing_is_left_after_any_member_is_killed(services: Programs, member: str) -> None:
    job = services(["child"]).start()
    wait_for(lambda: is_ready(job.plan), 20)
    job.member(member).kill()
    wait_for(job.is_gone, 20)
    wait_for(lambda: current_status(job.plan).phase == "failed")
    assert states(job.plan)[0].phase in ("stopped", "failed")
    assert states(job.plan)[0].requests_running is None


def test_the_error_of_the_engine_is_reported(services: Programs) -> None:
    job = services(["raise"]).start()
    status = wait_for(lambda: (now := current_status(job.plan)).phase == "failed" and now, 20)
    assert isinstance(status, JobStatus)
    text = status_text(status)
    assert "`one.0` ended with exit code 1: ValueError: no such weights" in text
    assert "log of the service" in text
    assert status.exit_code == 1


def test_the_mistakes_that_our_programs_report_are_the_cause(services: Programs) -> None:
    job = services(["mistakes:3"]).start()
    wait_for(lambda: current_status(job.plan).phase == "failed", 20)
    failure = job.state().failure
    assert failure is not None
    assert failure.message == "`one.0` ended with exit code 2: mistake 0"
    assert failure.traceback == "mistake 1\nmistake 2"


def test_a_server_that_exits_with_code_0_has_failed(services: Programs) -> None:
    job = services(["exit:0:0.5"], []).start()
    wait_for(lambda: job.state().phase == "failed", 20)
    failure = job.state().failure
    assert failure is not None
    assert failure.message == "`one.0` ended with exit code 0"
    assert "key None" in failure.traceback
    assert job.state().exit_code == 1


def test_a_server_that_stops_answering_is_reported(services: Programs) -> None:
    job = services(["sick"]).start()
    wait_for(lambda: states(job.plan) and states(job.plan)[0].phase == "unhealthy", 20)
    assert current_status(job.plan).phase == "running"
    assert "unhealthy" in status_text(current_status(job.plan))


def test_hanging_servers_are_ended(services: Programs) -> None:
    job = services([])
    recovery = replace(job.plan.recovery, hang_timeout=2.0)
    job = replace(job, plan=replace(job.plan, recovery=recovery)).start()
    wait_for(lambda: is_ready(job.plan), 20)
    os.kill(pid(job, 0), signal.SIGSTOP)
    wait_for(lambda: job.state().phase == "failed", 30)
    failure = job.state().failure
    assert failure is not None
    assert "no answer for 2 s" in failure.message
    wait_for(job.is_gone)


def test_a_batch_reports_its_progress_and_ends(
    services: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    job = services(["progress:3:8", "exit:0:3"], batch=True).start()
    status = watch_services(job.plan, lambda status: status.ended)
    assert status.phase == "finished"
    assert status.exit_code == 0
    assert "running  3/8 prompts  7.5 tokens/s" in capsys.readouterr().out
    assert [state.phase for state in states(job.plan)] == ["finished"]


def test_a_failed_batch_is_reported(services: Programs) -> None:
    job = services(["exit:2:0"], ["exit:0:60"], batch=True).start()
    wait_for(lambda: job.state().phase == "failed", 20)
    assert job.state().exit_code == 2
    wait_for(job.is_gone)


def test_the_output_of_an_earlier_run_is_not_reported(services: Programs) -> None:
    job = services([]).start()
    wait_for(lambda: is_ready(job.plan), 20)
    job.stop()
    again = services(["late:60"]).start()
    assert again.plan.exp_dir == job.plan.exp_dir
    assert current_status(again.plan).phase == "starting"
    launcher.stop(again.plan)
    assert not processes.of_run(again.plan.run_id)


def test_servers_that_hang_while_loading_are_ended(services: Programs) -> None:
    job = services(["late:60"])
    recovery = replace(job.plan.recovery, hang_timeout=1.0)
    job = replace(job, plan=replace(job.plan, recovery=recovery, ready_timeout=2.0)).start()
    wait_for(lambda: job.state().phase == "failed", 30)
    failure = job.state().failure
    assert failure is not None
    assert "no answer for 1 s" in failure.message


def test_a_late_failure_is_reported_with_the_output_since_the_server_answered(
    services: Programs,
) -> None:
    job = services(["harmless", "raise_when_asked:3"]).start()
    wait_for(lambda: job.state().phase == "failed", 30)
    failure = job.state().failure
    assert failure is not None
    assert failure.message == "`one.0` ended with exit code 1: RuntimeError: asked too often"


def test_a_full_disk_does_not_stop_a_server(services: Programs) -> None:
    job = services(["noisy"])
    log = job.files.service_log(job.host, "one.0")
    log.parent.mkdir(parents=True)
    log.symlink_to("/dev/full")
    job.start()
    wait_for(lambda: is_ready(job.plan), 20)
    assert "output of services is lost: " in job.log()
    assert job.stop()["ok"]


def test_device_indices_refer_to_the_visible_devices_of_the_host(
    services: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = replace(services([]).host, platform="nvidia", slots=2)
    own = Service("one", (), devices=(1,))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert device_environment(own, host) == {"CUDA_VISIBLE_DEVICES": "1"}
    assert device_environment(replace(own, devices=()), host) == {}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,4")
    assert device_environment(own, host) == {"CUDA_VISIBLE_DEVICES": "4"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6")
    with pytest.raises(OSError, match="makes 1 devices visible, not 2"):
        device_environment(own, host)


def test_a_start_waits_until_servers_answer(services: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    job = services([]).start()
    assert until_ready(job.plan) == 0
    assert is_ready(job.plan)
    capsys.readouterr()


def test_a_start_that_takes_too_long_is_rolled_back(
    services: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    job = services(["late:60"], ready_timeout=1.0).start()
    assert until_ready(job.plan) == 1
    assert "no answer within 1 s (experiment.runner.ready_timeout)" in capsys.readouterr().err
    assert job.is_gone()


def test_a_failed_start_is_reported_with_the_error_of_the_engine(
    services: Programs, capsys: pytest.CaptureFixture[str]
) -> None:
    job = services([], ["raise"]).start()
    assert until_ready(job.plan) == 1
    assert "`one.1` ended with exit code 1: ValueError: no such weights" in capsys.readouterr().err
    wait_for(job.is_gone)
