"""The cluster of the tests themselves: it starts, loses nodes and gets them back, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flagscale.run.env import import_path
from flagscale_testing.slurm.cluster import SlurmCluster
from flagscale_testing.slurm.config import Proctrack
from flagscale_testing.slurm.fixtures import MakeSlurmCluster

ROOT = Path(__file__).resolve().parents[2]
OWNER = """
import json, pathlib, sys
from flagscale_testing.slurm.cluster import slurm_cluster
with slurm_cluster(pathlib.Path(sys.argv[1]), 2) as cluster:
    cluster.run("sbatch", "-o", "/dev/null", "--wrap=setsid env -i sleep 600 & sleep 600", "-w", "n1")
    asleep = lambda: [one.pid for one in cluster.processes("n1") if one.name() == "sleep"]
    cluster.wait_until(lambda: len(asleep()) == 2, "sleepers")
    print(json.dumps([cluster.keeper.pid, *(one.pid for one in cluster.keeper.processes())]), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module", params=["linuxproc", "cgroup"])
def cluster(request: pytest.FixtureRequest, make_slurm_cluster: MakeSlurmCluster) -> SlurmCluster:
    proctrack: Proctrack = request.param
    return make_slurm_cluster(proctrack=proctrack, slurmd_timeout=5)


@pytest.fixture
def decoy() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_each_node_has_its_own_name_and_gpus_of_the_job(cluster: SlurmCluster) -> None:
    words = ["srun", "-N3", "--mem=100", "--gres=gpu:2", "sh", "-c", "echo $(hostname) $CUDA_VISIBLE_DEVICES"]
    printed = cluster.run(*words).stdout.splitlines()
    assert sorted(printed) == [f"{name} 0,1" for name in cluster.nodes]


def test_a_killed_node_loses_its_processes_and_comes_back(
    cluster: SlurmCluster, decoy: subprocess.Popen[bytes]
) -> None:
    first = cluster.nodes[0]
    words = [
        "-w",
        first,
        "--mem=100",
        "--no-requeue",
        "-o",
        "/dev/null",
        "--wrap=setsid sleep 600 & sleep 600",
    ]
    job = cluster.run("sbatch", "--parsable", *words).stdout.strip()
    cluster.wait_until(
        lambda: [one.name() for one in cluster.processes(first)].count("sleep") == 2, "both sleepers"
    )
    lost = cluster.processes(first)
    cluster.kill_node(first)
    assert [process for process in lost if process.is_running()] == []
    cluster.start_node(first)
    cluster.run("scancel", job)
    cluster.wait_until_idle()
    assert decoy.poll() is None


def test_a_killed_controller_comes_back_with_its_jobs(cluster: SlurmCluster) -> None:
    words = ["--mem=100", "--hold", "--job-name=remembered", "-o", "/dev/null", "--wrap=true"]
    job = cluster.run("sbatch", "--parsable", *words).stdout.strip()
    saved = cluster.config.folder / "state" / "job_state"
    cluster.wait_until(lambda: saved.exists() and b"remembered" in saved.read_bytes(), "saved state")
    cluster.kill_controller()
    cluster.start_controller()
    cluster.wait_until_idle()
    assert "JobState=PENDING" in cluster.run("scontrol", "show", "job", job).stdout
    cluster.run("scancel", job)


def test_nothing_is_left_if_the_owner_is_killed(
    cluster: SlurmCluster, tmp_path: Path, decoy: subprocess.Popen[bytes]
) -> None:
    environment = {**os.environ, "PYTHONPATH": import_path(str(ROOT))}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with owner:
        assert owner.stdout
        pids = json.loads(owner.stdout.readline())
        processes = [psutil.Process(pid) for pid in pids]
        assert {"slurmctld", "munged", "sleep"} <= {process.name() for process in processes}
        owner.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(processes, timeout=30)
    assert alive == []
    assert decoy.poll() is None
