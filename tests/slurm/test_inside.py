"""Commands inside an allocation, and outside it about what runs inside: real steps of a real cluster."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagscale.run.env import import_path
from flagscale_testing.slurm.allocations import Shell, salloc
from flagscale_testing.slurm.cluster import SlurmCluster
from flagscale_testing.slurm.config import Proctrack
from flagscale_testing.slurm.fixtures import MakeSlurmCluster
from tests.slurm.inside import ROOT, Commands, toy_commands


@pytest.fixture(scope="module", params=["linuxproc", pytest.param("cgroup", marks=pytest.mark.slow)])
def cluster(request: pytest.FixtureRequest, make_slurm_cluster: MakeSlurmCluster) -> SlurmCluster:
    proctrack: Proctrack = request.param
    return make_slurm_cluster(proctrack=proctrack)


@pytest.fixture(scope="module")
def shell(cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A shell of salloc with two hosts, and options that must not become those of our steps."""
    options = ["-N2", "-c2", "--mem-per-cpu=100", "--gres=gpu:2", "--job-name=of someone"]
    with salloc(cluster, tmp_path_factory.mktemp("shell"), *options) as made:
        yield made


@pytest.fixture
def toy(shell: Shell, tmp_path: Path) -> Iterator[Commands]:
    commands = toy_commands(tmp_path, shell)
    yield commands
    (tmp_path / "end").touch()
    for process in commands.processes():
        process.kill()


def test_a_job_runs_on_the_hosts_of_the_allocation_and_ends(toy: Commands) -> None:
    started = toy("run")
    assert "as step toy-" in started
    assert f"of Slurm's job {toy.shell.job_id}" in started
    status = toy.status(inside=False)
    assert status["state"] == "running"
    assert [host["name"] for host in status["hosts"]] == ["n1", "n2"]
    assert toy.steps() == [status["run_id"]]
    assert "stop it first" in toy("run", code=1)
    assert (toy.out / "slurm.json").exists()
    (toy.folder / "end").touch()
    toy.wait_for("finished")
    logs = toy("logs", inside=False)
    assert sorted(line for line in logs.splitlines() if "found" in line) == [
        "n1: the toy job found its file",
        "n2: the toy job found its file",
    ]
    toy.shell.cluster.wait_until(lambda: toy.steps() == [], "end of the step")
    files = [path for path in toy.out.rglob("*") if path.is_file()]
    assert [path for path in files if "top-secret" in path.read_text()] == []


def test_a_stop_from_outside_ends_the_step_alone(toy: Commands) -> None:
    decoy = toy.shell.cluster.run(
        "sbatch", "--parsable", "-w", "n1", "--mem=100", "-o", "/dev/null", "--wrap=sleep 600"
    ).stdout.strip()
    toy("run")
    assert len(toy.processes()) >= 4, "on each host a supervisor and its agent"
    assert toy("stop", inside=False).splitlines() == ["host 0  n1  stopped", "host 1  n2  stopped"]
    toy.shell.cluster.wait_until(lambda: not toy.processes(), "end of all processes")
    assert toy.status()["state"] == "stopped"
    assert "nothing was running" in toy("stop")
    shown = toy.shell.cluster.run("scontrol", "show", "job", toy.shell.job_id).stdout
    assert "JobState=RUNNING" in shown
    assert "JobState=RUNNING" in toy.shell.cluster.run("scontrol", "show", "job", decoy).stdout
    toy.shell.cluster.run("scancel", decoy)
    # The next run says how this one ended.
    (toy.folder / "end").touch()
    toy("run")
    first, _ = json.loads((toy.out / "slurm.json").read_text())["begins"]
    assert first["end"] == "stopped"


def test_a_failed_start_is_taken_back(toy: Commands) -> None:
    lines = 'echo hello; [ "$SLURM_NODEID" = 0 ] || exit 3'
    printed = toy("run", f"+experiment.cmds.before_start='{lines}'", code=1)
    assert "- n2: experiment.cmds.before_start ended with exit code 3: hello" in printed
    assert "n1:" not in printed.partition("hosts that had started were stopped again")[2], "it is a victim"
    assert (toy.steps(), toy.processes()) == ([], [])
    assert toy.status(code=1)["failure"]["message"].startswith("experiment.cmds.before_start ended with")


@pytest.mark.slow
def test_lines_before_the_start_run_on_each_host_and_a_stop_reaches_the_job(toy: Commands) -> None:
    toy("run", "+experiment.cmds.before_start='echo before on $SLURMD_NODENAME'")
    assert [line for line in toy.printed().splitlines() if "before on" in line] == [
        "before on n1",
        "before on n2",
    ]
    assert toy("stop").splitlines() == ["host 0  n1  stopped", "host 1  n2  stopped"]
    toy.shell.cluster.wait_until(lambda: not toy.processes(), "end of all processes")


@pytest.mark.slow
def test_fewer_hosts_than_allocated(toy: Commands) -> None:
    toy("run", "experiment.runner.nnodes=1")
    assert [host["name"] for host in toy.status()["hosts"]] == ["n1"]
    assert "host 0  n1  stopped" in toy("stop")


@pytest.mark.slow
def test_ctrl_c_ends_the_step(toy: Commands) -> None:
    with toy.popen("test") as command:
        toy.shell.cluster.wait_until(lambda: toy.printed().count("the toy job runs") == 2, "running job")
        assert command.stdout
        command.send_signal(signal.SIGINT)
        printed, _ = command.communicate(timeout=120)
    assert command.returncode == 130
    assert "host 0  n1  stopped" in printed
    toy.shell.cluster.wait_until(lambda: not toy.processes() and not toy.steps(), "end of the step")


def test_checks_and_plans_are_those_of_the_hosts(toy: Commands) -> None:
    checked = toy("check")
    assert "ok      n1  toy-queue 1.0 (required: 1.0)" in checked
    assert "ok      n2  toy-queue 1.0 (required: 1.0)" in checked
    printed = toy("dryrun")
    assert "host_1_n2_run.sh" in printed
    assert "#SBATCH" not in printed
    mistake = toy("run", "experiment.runner.nnodes=3", code=2)
    assert f"nnodes is 3, but job {toy.shell.job_id} of Slurm has 2 hosts" in mistake
    assert not toy.out.exists()


def test_a_step_gets_all_that_the_job_has_on_each_host(toy: Commands) -> None:
    show = "echo has $SLURM_CPUS_ON_NODE CPUs, GPUs $CUDA_VISIBLE_DEVICES, $TOY_EXPORTED"
    file = toy.folder / "conf" / "config.yaml"
    file.write_text(file.read_text().replace("  envs:", f"  cmds: {{before_start: '{show}'}}\n  envs:"))
    (toy.folder / "end").touch()
    script = toy.folder / "script.sh"
    command = f"{sys.executable} {ROOT}/run.py --config-path {toy.folder}/conf --config-name config"
    script.write_text(
        "#!/bin/sh\n"
        f"export PATH='{toy.shell.cluster.environment()['PATH']}' TOY_EXPORTED=exported\n"
        f"export PYTHONPATH='{toy.folder / 'site'}:{import_path(str(ROOT))}'\n"
        f"exec {command} action=test\n"
    )
    options = ["-N1", "-c3", "--mem=200", "--gres=gpu:1", "--export=NONE", "-o", f"{toy.folder}/output"]
    toy.shell.cluster.run("sbatch", "--wait", *options, str(script), code=None, seconds=180)
    assert "toy: finished" in (toy.folder / "output").read_text()
    assert "has 3 CPUs, GPUs 0, exported" in toy.printed()


@pytest.mark.slow
def test_the_end_of_the_allocation_ends_the_job(cluster: SlurmCluster, toy: Commands) -> None:
    with salloc(cluster, toy.folder, "-N1", "--mem=100") as shell:
        other = Commands(toy.folder, shell)
        other("run")
        other.shell.cluster.run("scancel", shell.job_id)
        cluster.wait_until(lambda: not toy.processes(), "end of all processes")
    deadline = time.monotonic() + 60
    while (status := toy.status(inside=False))["state"] == "running":
        assert time.monotonic() < deadline, status
    assert status["state"] == "stopped"


@pytest.mark.slow
def test_a_killed_supervisor_fails_the_job_on_all_hosts(toy: Commands) -> None:
    toy("run")
    (state,) = toy.out.glob("logs/pids/host_1_n2.json")
    os.kill(json.loads(state.read_text())["supervisor"]["pid"], signal.SIGKILL)
    toy.shell.cluster.wait_until(lambda: not toy.processes() and not toy.steps(), "end of the step")
    assert toy.status(code=1, inside=False)["state"] == "failed"
    (toy.folder / "end").touch()
    toy("run")
    toy.wait_for("finished")
