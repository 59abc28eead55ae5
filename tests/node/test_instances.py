"""Two instances behind one address, on one host: each lives apart, and a stop lets requests finish."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from urllib.error import HTTPError

import pytest

from flagscale.node import processes
from flagscale.run.state import ServiceState
from flagscale.start import until_ready
from flagscale.status.model import status_json
from flagscale.status.text import status_text
from flagscale.status.watch import current_status
from flagscale.values import Recovery, Service
from flagscale_testing.jobs.plans import ROUTER, SERVER
from flagscale_testing.ports import free_port
from tests.node.conftest import FakeJob, wait_for

Instances = Callable[..., FakeJob]


@pytest.fixture
def instances(make_job: Callable[..., FakeJob]) -> Instances:
    """A function that makes a job with a router, and one instance per list of behaviours behind it."""

    def make(*behaviours: list[str], max_restarts: int = 0, **changes: object) -> FakeJob:
        job = make_job(task_type="serve", **changes)
        first, *ports = (free_port() for _ in range(len(behaviours) + 1))
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        services = [
            Service(
                "chat", (sys.executable, "-S", str(ROUTER), str(first), *urls), f"http://127.0.0.1:{first}"
            )
        ]
        for number, (port, behaves) in enumerate(zip(ports, behaviours, strict=True)):
            argv = (sys.executable, "-S", str(SERVER), str(port), *behaves)
            services.append(Service(f"chat.{number}", argv, urls[number], "m", behind="chat"))
        plan = replace(job.plan, recovery=replace(job.plan.recovery, max_restarts=max_restarts))
        words = ("-m", "flagscale.node", "services", plan.exp_dir, "0", plan.run_id)
        node = replace(plan.nodes[0], argv=(sys.executable, *words), services=tuple(services))
        return replace(job, plan=replace(plan, nodes=(node,)))

    return make


def states(job: FakeJob) -> dict[str, ServiceState]:
    return {state.name: state for _, state in current_status(job.plan).services}


def phases(job: FakeJob) -> list[str]:
    return [state.phase for state in states(job).values()]


def start(job: FakeJob) -> FakeJob:
    job.start()
    wait_for(lambda: phases(job) == ["ready"] * len(job.plan.services), 20)
    return job


def kill(job: FakeJob, name: str, number: signal.Signals = signal.SIGKILL) -> None:
    os.kill(states(job)[name].pid, number)


def ask(job: FakeJob, path: str = "/slow/0") -> str:
    """Return the port of the instance that answered a client."""
    with urllib.request.urlopen(job.plan.services[0].url + path, timeout=20) as answer:
        return str(answer.read().decode())


def port(job: FakeJob, number: int) -> str:
    return job.plan.services[1 + number].url.rpartition(":")[2]


def test_an_instance_that_is_killed_starts_again_while_the_other_answers(instances: Instances) -> None:
    job = start(instances([], [], max_restarts=1))
    before = states(job)
    kill(job, "chat.0")
    wait_for(lambda: states(job)["chat.0"].phase == "restarting")
    assert ask(job) == port(job, 1)
    text = status_text(current_status(job.plan))
    assert "1 of 2 instances ready" in text
    assert "`chat.0` was killed by SIGKILL  log " in text
    wait_for(lambda: phases(job) == ["ready"] * 3, 20)
    after = states(job)
    assert after["chat.0"].pid != before["chat.0"].pid
    assert [after[name].pid for name in ("chat", "chat.1")] == [
        before[name].pid for name in ("chat", "chat.1")
    ]
    assert (after["chat.0"].restarts, after["chat.1"].restarts) == (1, 0)
    # Its restarts are used up: the other goes on alone, and ends by a mistake that no restart can fix.
    kill(job, "chat.0")
    wait_for(lambda: states(job)["chat.0"].phase == "failed")
    status = current_status(job.plan)
    assert (status.phase, status.exit_code) == ("running", 0)
    assert "failed 0s ago  `chat.0` was killed by SIGKILL  log " in status_text(status)
    assert "it is not started again" in job.log()
    with pytest.raises(HTTPError):
        ask(job, "/exit/2")
    wait_for(lambda: job.state().phase == "failed", 20)
    wait_for(job.is_gone)
    failed = current_status(job.plan)
    assert failed.failure is not None
    # The first of the failures that were for good.
    assert failed.failure[1].message == "`chat.0` was killed by SIGKILL"
    assert failed.failure[1].log.endswith("chat.0.log")
    assert failed.exit_code == 1
    assert job.state().attempts == ()


def test_a_router_that_is_killed_starts_again_before_the_same_instances(instances: Instances) -> None:
    job = start(instances([], [], max_restarts=1))
    before = states(job)
    # Its log cannot be written, as on a full disk.
    log = job.files.service_log(job.host, "chat")
    log.unlink()
    log.symlink_to("/dev/full")
    kill(job, "chat")
    wait_for(lambda: states(job)["chat"].restarts == 1 and states(job)["chat"].phase == "ready", 20)
    assert ask(job) == port(job, 0)
    assert [states(job)[name].pid for name in ("chat.0", "chat.1")] == [
        before[name].pid for name in ("chat.0", "chat.1")
    ]
    kill(job, "chat")
    wait_for(lambda: job.state().phase == "failed", 20)
    failure = job.state().failure
    assert failure is not None
    assert failure.message == "`chat` was killed by SIGKILL"
    wait_for(job.is_gone)


@pytest.mark.slow
def test_an_instance_that_hangs_is_started_again_without_what_it_left(instances: Instances) -> None:
    job = instances([], ["child"])
    job = replace(job, plan=replace(job.plan, recovery=Recovery(max_restarts=1, hang_timeout=1.0)))
    start(job)
    kill(job, "chat.1", signal.SIGSTOP)
    wait_for(lambda: states(job)["chat.1"].restarts == 1, 20)
    assert ask(job) == port(job, 0)
    reason = states(job)["chat.1"].failure
    assert reason is not None
    assert reason.message == "`chat.1` was killed: no answer for 1 s"
    wait_for(lambda: phases(job) == ["ready"] * 3, 20)
    # The child of the first process ignores TERM: it is gone, and that of the second is there.
    assert len(processes.of_service(job.plan.run_id, 0, "chat.1")) == 2


def test_an_instance_that_fails_while_it_loads_ends_the_start(instances: Instances) -> None:
    job = instances([], ["raise"], max_restarts=1).start()
    wait_for(lambda: job.state().attempts, 20)
    failure = job.state().attempts[0].failure
    assert failure.message == "`chat.1` ended with exit code 1: ValueError: no such weights"
    assert not failure.is_final


def test_a_start_is_rolled_back_if_an_instance_fails_before_all_are_ready(
    instances: Instances, capsys: pytest.CaptureFixture[str]
) -> None:
    job = instances([], ["late:60"]).start()
    wait_for(lambda: phases(job)[1:2] == ["ready"], 20)
    kill(job, "chat.0")
    assert until_ready(job.plan) == 1
    said = capsys.readouterr().err
    assert "`chat.0` was killed by SIGKILL  log " in said
    assert "error: an instance ended before all of them were ready" in said
    assert job.is_gone()


def test_a_stop_cuts_requests_that_take_too_long(instances: Instances) -> None:
    job = start(instances([], [], stop_grace=1.0))
    errors: list[Exception] = []

    def client() -> None:
        try:
            ask(job, "/slow/60")
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=client)
    thread.start()
    wait_for(lambda: "begun /slow/60" in job.log())
    kill(job, "chat.1", signal.SIGSTOP)
    begun = time.monotonic()
    second = threading.Thread(target=job.stop)
    second.start()
    assert job.stop()["ok"]
    second.join()
    thread.join()
    assert errors
    assert time.monotonic() - begun < 12
    assert job.is_gone()


def test_the_state_is_reported_to_programs_and_a_stop_lets_begun_requests_finish(
    instances: Instances,
) -> None:
    job = start(instances([], [], stop_grace=10.0))
    wait_for(lambda: states(job)["chat.1"].requests_running == 3)
    kill(job, "chat.0")
    wait_for(lambda: states(job)["chat.0"].phase == "failed")
    reported = json.loads(json.dumps(status_json(current_status(job.plan))))
    (endpoint,) = reported["endpoints"]
    assert (endpoint["name"], endpoint["instances"], endpoint["ready"]) == ("chat", ["chat.0", "chat.1"], 1)
    assert (endpoint["requests_running"], endpoint["requests_waiting"]) == (3, 4)
    failed = reported["programs"][1]
    assert (failed["name"], failed["failure"]["signal"]) == ("chat.0", "SIGKILL")

    answers: list[str] = []
    client = threading.Thread(target=lambda: answers.append(ask(job, "/slow/1")))
    client.start()
    wait_for(lambda: "begun /slow/1" in job.log())
    begun = time.monotonic()
    assert job.stop()["ok"]
    client.join()
    assert answers == [port(job, 1)]
    assert time.monotonic() - begun < 8
    assert job.is_gone()
    assert phases(job) == ["stopped", "failed", "stopped"]
