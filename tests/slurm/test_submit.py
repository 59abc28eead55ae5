"""Jobs submitted from a login node of a real cluster: submission, secrets, requeue, endings."""

from __future__ import annotations

import itertools
import signal
import subprocess
from pathlib import Path

import pytest

from flagscale_testing.slurm.cluster import SlurmCluster
from flagscale_testing.slurm.fixtures import MakeSlurmCluster
from tests.slurm.jobs import SlurmExperiment

_NUMBERS = itertools.count()


@pytest.fixture
def job(slurm_cluster: SlurmCluster, tmp_path: Path) -> SlurmExperiment:
    return SlurmExperiment(slurm_cluster, tmp_path / f"job{next(_NUMBERS)}").write()


def secrets_in(folder: Path, secret: str) -> list[str]:
    """Return the names of the files in a run directory that hold a secret."""
    return [
        path.name
        for path in folder.rglob("*")
        if path.is_file() and secret in path.read_text(errors="replace")
    ]


@pytest.mark.timeout(600)
def test_a_job_is_submitted_runs_and_finishes(job: SlurmExperiment) -> None:
    token = ("+experiment.envs.SLURM_TEST_TOKEN=top-secret", "+experiment.runner.slurm.hold=true")
    printed = job("run", *token, SBATCH_PARTITION="high", SBATCH_ARRAY_INX="1-3")
    known = job.job()
    queue = job.cluster.run("squeue", "--noheader", "--format=%P %i", f"--jobs={known.job_id}").stdout
    assert queue.split() == ["main", known.job_id]
    assert f"submitted to Slurm as job {known.job_id}" in printed
    assert (known.is_ours, known.name, known.begins) == (True, known.step, ())
    assert job.status()["state"] == "queued"
    assert secrets_in(job.folder / "out", "top-secret") == ["slurm.secrets.json"]
    assert job.run_dir.slurm_secrets.stat().st_mode & 0o777 == 0o600
    # What is edited after the submission has no effect on the job.
    program = (job.folder / "config.yaml").read_text().replace("program.py", "absent.py")
    (job.folder / "config.yaml").write_text(program)
    (job.folder / "absent.py").touch()
    assert "is queued (" in job("run", code=1)
    job.cluster.run("scontrol", "release", known.job_id)
    job.wait(lambda: job.noted("begun") == 2, "two ranks")
    assert (job.folder / "environ.1").read_text() == "top-secret"
    assert "host 1  n2  running" in job("query")
    job.end()
    job.wait(lambda: job.job().begins[-1].end, "an end")
    (begin,) = job.job().begins
    assert (begin.end, begin.hosts, begin.run_id) == ("finished", ("n1", "n2"), known.name)
    assert secrets_in(job.folder / "out", "top-secret") == []
    job.wait(lambda: job.status()["state"] == "finished", "a finished job")


def test_dryrun_prints_the_script_and_submits_nothing(job: SlurmExperiment) -> None:
    printed = job("dryrun", "+experiment.runner.slurm.account=007")
    assert f"# {job.folder}/out/logs/scripts/slurm.sh\n#!/bin/bash\n" in printed
    assert (
        "\n#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n#SBATCH --partition=main\n#SBATCH --account=007\n"
        in printed
    )
    assert not (job.folder / "out").exists()


def test_a_submission_that_slurm_refuses_leaves_nothing(job: SlurmExperiment) -> None:
    printed = job("run", "+experiment.runner.slurm.licenses=none-such", code=1)
    assert "the job was not submitted: `sbatch`" in printed
    assert "nvalid license" in printed
    assert "Traceback" not in printed
    assert not job.run_dir.plan.exists()
    assert not job.run_dir.config.exists()
    assert "nothing was started" in job("query", code=3)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_ends_the_job_that_test_waits_for(job: SlurmExperiment) -> None:
    process = subprocess.Popen(
        job.words("test"), env=job.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    job.wait(lambda: job.noted("begun") == 2, "two ranks")
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    assert "host 1  n2  stopped" in printed
    assert job.noted("saved") == 2
    assert job.slurm_state() in ("", "CANCELLED", "COMPLETED")


@pytest.mark.timeout(900)
def test_a_job_saves_and_begins_again_at_its_time_limit(job: SlurmExperiment) -> None:
    token = "+experiment.envs.SLURM_TEST_TOKEN=top-secret"
    job("run", "+experiment.runner.slurm.requeue=true", token)
    job.wait(lambda: job.noted("begun") == 2, "two ranks")
    job.announce_limit()
    job.wait(lambda: job.job().begins[-1].end == "time limit", "the end of the first begin")
    assert job.noted("saved") == 2
    job.wait(lambda: job.status()["state"] == "queued", "a queued job")
    assert "stopped before the time limit, to begin again" in job("query")
    job.begin_now()
    job.wait(lambda: job.noted("begun") == 4, "two ranks again")
    assert (job.folder / "environ.0").read_text() == "top-secret"
    assert job.status()["state"] == "running"
    job.end()
    job.wait(lambda: len(job.job().begins) == 2 and job.job().begins[1].end, "an end")
    first, second = job.job().begins
    assert (second.run_id, second.number, second.end) == (f"{first.run_id}-r1", 1, "finished")
    assert not job.run_dir.slurm_secrets.exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_without_requeue_the_job_saves_and_ends_at_its_time_limit(job: SlurmExperiment) -> None:
    job("run")
    job.wait(lambda: job.noted("begun") == 2, "two ranks")
    job.announce_limit()
    job.wait(lambda: job.job().begins[-1].end == "time limit", "an end")
    assert job.noted("saved") == 2
    job.wait(lambda: job.slurm_state() in ("", "COMPLETED", "FAILED"), "the end of the job")
    assert "to let it begin again, set experiment.runner.slurm.requeue: true" in job("query", code=0)


@pytest.mark.timeout(900)
def test_a_preempted_job_saves_and_begins_again(job: SlurmExperiment) -> None:
    job("run", "+experiment.runner.slurm.requeue=true")
    job.wait(lambda: job.noted("begun") == 2, "two ranks")
    words = ["--partition=high", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    job.cluster.run("sbatch", *words)
    job.wait(lambda: job.job().begins[-1].end, "an end")
    assert job.job().begins[-1].end == "preempted"
    assert job.noted("saved") == 2
    job.begin_now()
    job.wait(lambda: job.noted("begun") == 4, "two ranks again")
    job.end()
    job.wait(lambda: [begin.end for begin in job.job().begins] == ["preempted", "finished"], "two ends")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_failed_job_does_not_begin_again(job: SlurmExperiment) -> None:
    job("run", "+experiment.runner.slurm.requeue=true")
    job.wait(lambda: job.noted("begun") == 2, "two ranks")
    job.end(3)
    job.wait(lambda: job.job().begins[-1].end, "an end")
    (begin,) = job.job().begins
    assert begin.end == "failed"
    assert begin.failures == 1
    job.wait(lambda: job.status()["state"] == "failed", "a failed job")


def lost(job: SlurmExperiment, node: str) -> None:
    """Start a job that may begin again once, and kill a node of it."""
    job(
        "run",
        "+experiment.runner.slurm.requeue=true",
        "+experiment.runner.max_restarts=1",
        "+experiment.runner.restart_timeout=5",
    )
    job.wait(lambda: job.noted("begun") == 2, "two ranks")
    job.cluster.kill_node(node)
    job.wait(lambda: job.job().begins[-1].end, "an end")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("timeout", [10, 300])
def test_a_lost_host_is_left_out(make_slurm_cluster: MakeSlurmCluster, tmp_path: Path, timeout: int) -> None:
    job = SlurmExperiment(make_slurm_cluster(slurmd_timeout=timeout), tmp_path / "job").write()
    lost(job, "n2")
    assert job.job().begins[-1].end == "node lost"
    # Slurm finds out only after its own time; until then the job leaves the host out itself.
    if timeout == 300:
        shown = ("scontrol", "show", "job", job.job().job_id)
        job.wait(lambda: "ExcNodeList=n2" in job.cluster.run(*shown).stdout, "an excluded host")
        assert job.job().excluded == ("n2",)
        job.cluster.run("scontrol", "update", "NodeName=n2", "State=DOWN", "Reason=test")
    job.begin_now()
    job.wait(lambda: job.noted("begun") >= 4, "two ranks again")
    assert job.job().begins[-1].hosts == ("n1", "n3")
    job.end()
    job.wait(lambda: job.job().begins[-1].end == "finished", "an end")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_groups_of_hosts_run_one_job(job: SlurmExperiment) -> None:
    groups = "[{nnodes: 1, nproc_per_node: 2, gres: 'gpu:2', type: cpu}, {nnodes: 2, type: cpu}]"
    ranks = ("~experiment.runner.nnodes", "train.model.global_batch_size=4")
    printed = job("run", f"+experiment.runner.slurm.groups={groups}", *ranks)
    assert "4 ranks on 3 hosts" in printed
    assert "with 2 groups of hosts" in printed
    assert len(job.job().components) == 2
    job.wait(lambda: job.noted("begun") == 4, "four ranks")
    assert [host["name"] for host in job.status()["hosts"]] == ["n1", "n2", "n3"]
    stopped = job("stop")
    assert "host 2  n3  stopped" in stopped
    assert job.noted("saved") == 4
    job.wait(lambda: job.slurm_state() == "" or "CANCELLED" in job.slurm_state(), "the end of both")
