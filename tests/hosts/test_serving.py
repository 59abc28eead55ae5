"""Servers on several hosts: each host checks its own, and the status and a stop cover all hosts."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flagscale.status.text import status_text
from flagscale.status.watch import current_status, watch_services
from flagscale.values import Service
from flagscale_testing.farm.farm import wait_until
from flagscale_testing.farm.fixtures import MakeNamespaceFarm
from flagscale_testing.farm.namespaces import NamespaceFarm
from flagscale_testing.jobs.plans import SERVER
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


def test_a_server_that_dies_ends_the_server_of_the_other_host(make_servers: Callable[..., FarmJob]) -> None:
    job = make_servers("child").start()
    watch_services(job.plan, lambda status: status.phase != "starting")
    wait_until(lambda: len(current_status(job.plan).services) == 2, "the states of both hosts")
    (victim,) = [state.pid for _, state in current_status(job.plan).services if state.name == "one.1"]
    inside = next(one for one in job.farm.processes(job.hosts[1]) if _pid_inside(one.pid) == victim)
    os.kill(inside.pid, signal.SIGKILL)
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
@pytest.mark.timeout(1200)
def test_one_model_across_two_hosts_answers(farm: NamespaceFarm, disk: Path, tmp_path: Path) -> None:
    """vLLM's own tensor parallelism across hosts, started over SSH from one YAML file."""
    model = tmp_path / "model"
    make_model(model)
    first = farm.hosts[0].address
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("".join(f"{host.address} slots=1 type=cpu\n" for host in farm.hosts))
    words = [
        *(sys.executable, str(ROOT / "run.py"), "--config-path", str(ROOT / "examples/aquila/conf")),
        *("--config-name", "config_serve", f"experiment.exp_dir={tmp_path / 'run'}"),
        *(f"+experiment.runner.hostfile={hostfile}", "+experiment.runner.nnodes=2"),
        *(f"+experiment.envs.PYTHONPATH={ROOT / 'vllm'}", f"serve.model={model}"),
        *("+serve.tensor_parallel_size=2", f"+serve.host={first}"),
    ]

    def flagscale(action: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*words, f"action={action}"],
            env=farm.environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=900,
        )

    try:
        started = flagscale("run")
        assert started.returncode == 0, started.stdout + started.stderr
        assert shutil.which("curl")
        data = '{"model": "aquila", "prompt": "hello", "max_tokens": 8}'
        ask = ["curl", "-s", f"http://{first}:8000/v1/completions", "-H", "Content-Type: application/json"]
        answer = farm.run(farm.hosts[1], [*ask, "-d", data]).stdout
        assert '"completion_tokens":8' in answer
    finally:
        stopped = flagscale("stop")
    assert stopped.returncode == 0
    for host in farm.hosts:
        wait_until(lambda host=host: not farm.processes(host), f"an empty {host.name}", 20)  # type: ignore[misc]
