"""Query and stop of jobs in a real cluster: pending, running, ended, someone's, without a controller."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flagscale.runners.slurm import ledger, report
from flagscale.runners.slurm.stop import stop
from flagscale.status.model import JobStatus, status_json
from flagscale.status.text import status_text
from flagscale.status.watch import current_status
from flagscale_testing.slurm.cluster import SlurmCluster
from flagscale_testing.slurm.fake_jobs import FakeSlurmJob, submit_fake
from flagscale_testing.slurm.fixtures import MakeSlurmCluster

Submit = Callable[..., FakeSlurmJob]


@pytest.fixture(autouse=True)
def cluster(slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """The cluster that this process asks."""
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", str(slurm_cluster.config.conf))
    monkeypatch.setattr(report, "_FRESH", 0.0)
    return slurm_cluster


@pytest.fixture
def submit(cluster: SlurmCluster, tmp_path: Path) -> Submit:
    def make(*options: str, **more: object) -> FakeSlurmJob:
        made = submit_fake(cluster, tmp_path / "run", *options, **more)  # type: ignore[arg-type]
        jobs.append(made)
        return made

    jobs: list[FakeSlurmJob] = []
    yield make  # type: ignore[misc]
    for job in jobs:
        cluster.run("scancel", job.job_id, code=None)
        for node in cluster.nodes:
            for process in job.processes(node):
                process.kill()
    cluster.wait_until_idle()


def query(job: FakeSlurmJob) -> JobStatus:
    return current_status(job.plan)


def messages(job: FakeSlurmJob) -> list[str]:
    return [f"{host.name}: {reply['message']}" for host, reply in stop(job.plan).items()]


def test_a_pending_job_is_queued_with_its_reason_and_is_cancelled(submit: Submit) -> None:
    job = submit("--hold")
    status = query(job)
    assert (status.phase, status.ended, status.exit_code) == ("queued", False, 0)
    assert status.reason.startswith(f"job {job.job_id} is in Slurm's queue (JobHeld")
    assert status_json(status)["queue"]["state"] == "PENDING"
    assert messages(job) == ["n1: cancelled", "n2: cancelled"]
    assert job.slurm_state() == "CANCELLED"
    assert (query(job).phase, query(job).ended) == ("stopped", True)
    assert messages(job) == ["n1: nothing was running", "n2: nothing was running"]


def test_a_running_job_is_stopped_completely_and_nothing_else_is(
    submit: Submit, cluster: SlurmCluster
) -> None:
    decoy = cluster.run(
        "sbatch", "--parsable", "--mem=100", "-w", "n1", "-o", "/dev/null", "--wrap=sleep 300"
    ).stdout
    job = submit(
        "--time=10", behaviours=("rank", "rank deaf", "rank daemon", "rank daemon bare")
    ).wait_until_running()
    status = query(job)
    assert (status.phase, status.reason) == ("running", "")
    assert status.notes[0].startswith(f"job {job.job_id} of Slurm, partition main: 9m")
    assert [f"  {status.notes[0]}"] == status_text(status).splitlines()[1:2]
    assert messages(job) == ["n1: stopped", "n2: stopped"]
    assert job.slurm_state() in ("CANCELLED", "COMPLETED", "FAILED")
    assert [job.processes(node) for node in cluster.nodes] == [[], [], []]
    assert "sleep" in {process.name() for process in cluster.processes("n1")}
    cluster.run("scancel", decoy.strip())
    status = query(job)
    assert (status.phase, status.ended, status.exit_code) == ("stopped", True, 0)
    assert messages(job) == ["n1: nothing was running", "n2: nothing was running"]


def test_in_the_allocation_of_someone_only_the_step_is_stopped(submit: Submit, cluster: SlurmCluster) -> None:
    job = submit(is_ours=False).wait_until_running()
    assert query(job).phase == "running"
    assert messages(job) == ["n1: stopped", "n2: stopped"]
    assert job.slurm_state() == "RUNNING"
    assert query(job).phase == "stopped"
    assert messages(job) == ["n1: nothing was running", "n2: nothing was running"]
    assert job.slurm_state() == "RUNNING"


@pytest.mark.slow  # the stop waits in vain for the supervisor, twice
def test_hosts_whose_supervisor_does_not_answer_are_searched_by_a_process_of_the_job(
    submit: Submit, cluster: SlurmCluster
) -> None:
    job = submit(behaviours=("rank daemon",), nodes=("n1",)).wait_until_running()
    state = job.state(0)
    assert state
    for process in filter(None, (state.guard, state.supervisor)):
        psutil.Process(process.pid).suspend()
    assert messages(job) == ["n1: stopped"]
    assert job.processes("n1") == []


def test_a_job_with_the_same_id_that_is_not_ours_is_not_touched(
    submit: Submit, cluster: SlurmCluster
) -> None:
    job = submit("--hold")
    other = cluster.run(
        "sbatch", "--parsable", "--mem=100", "-J", "other", "-o", "/dev/null", "--wrap=sleep 300"
    )
    known = ledger.read(job.files)
    assert known
    other_id = other.stdout.strip()
    ledger.record_job(job.files, ledger.replace(known, job_id=other_id))
    cluster.run("scancel", job.job_id)
    assert "its id is that of another job now, `other` of root" in query(job).reason
    assert messages(job) == ["n1: nothing was running", "n2: nothing was running"]
    assert FakeSlurmJob(cluster, job.plan, other_id).slurm_state() in ("RUNNING", "PENDING")
    cluster.run("scancel", other_id)


@pytest.mark.parametrize("is_killed", [False, True])
def test_without_an_answer_of_the_controller_query_says_what_the_files_say_and_stop_what_it_could_not_do(
    submit: Submit, cluster: SlurmCluster, is_killed: bool
) -> None:
    job = submit().wait_until_running()
    if is_killed:
        known = ledger.read(job.files)
        assert known
        saved, began = cluster.config.folder / "state" / "job_state", known.begins[-1].began
        # Otherwise the controller would forget the job.
        cluster.wait_until(lambda: saved.exists() and saved.stat().st_mtime > began + 1, "saved state")
        cluster.kill_controller()
    else:
        cluster.pause_controller()
    try:
        status = query(job)
        assert (status.phase, status.ended) == ("running", False)
        assert f"; what follows is what job {job.job_id} has recorded itself" in status.reason
        replies = stop(job.plan)
        assert [reply["ok"] for reply in replies.values()] == [False, False]
        assert "repeat action=stop when Slurm answers" in replies[job.plan.hosts[0]]["message"]
    finally:
        cluster.start_controller() if is_killed else cluster.resume_controller()
    assert job.is_running()
    cluster.wait_until(lambda: job.slurm_state() == "RUNNING", "controller")
    assert messages(job) == ["n1: stopped", "n2: stopped"]


def test_a_script_that_fails_before_its_ranks_start_is_a_failure_with_its_output(
    submit: Submit, cluster: SlurmCluster
) -> None:
    job = submit("--hold")
    (job.files.path / "plan.json").rename(job.files.path / "moved")
    cluster.run("scontrol", "release", job.job_id)
    cluster.wait_until(lambda: job.slurm_state() == "FAILED", "failed job")
    status = query(job)
    assert (status.phase, status.exit_code) == ("failed", 1)
    assert status.reason.startswith("its ranks were not started: the job's script failed")
    assert "AssertionError" in status_text(status)


def test_a_missing_folder_of_the_output_is_named(submit: Submit, cluster: SlurmCluster) -> None:
    job = submit("--output=/nonexistent/folder/output")
    cluster.wait_until(lambda: job.slurm_state() == "FAILED", "failed job")
    status = query(job)
    assert status.phase == "failed"
    assert "Slurm could not start the job's script, because of its output file" in status.reason
    assert "FAILED, JobLaunchFailure" in status.reason


@pytest.mark.parametrize(
    ("is_ours", "state", "phase"), [(True, "FAILED", "failed"), (False, "CANCELLED", "stopped")]
)
def test_a_job_whose_supervisors_were_killed_ends_as_slurm_says(
    submit: Submit, cluster: SlurmCluster, is_ours: bool, state: str, phase: str
) -> None:
    job = submit(is_ours=is_ours).wait_until_running()
    for rank in (0, 1):
        recorded = job.state(rank)
        assert recorded
        for process in filter(None, (recorded.guard, recorded.supervisor)):
            os.kill(process.pid, signal.SIGKILL)
    if not is_ours:
        cluster.run("scancel", job.job_id)
    cluster.wait_until(lambda: job.slurm_state() == state, f"{state} job")
    assert query(job).phase == "stopping"  # its last states may become visible later
    cluster.wait_until(lambda: query(job).ended, "end of the job")
    assert query(job).phase == phase


def test_a_requeued_job_is_queued_with_the_time_that_slurm_waits(
    submit: Submit, cluster: SlurmCluster
) -> None:
    job = submit("--requeue").wait_until_running()
    cluster.run("scontrol", "requeue", job.job_id)
    cluster.wait_until(lambda: job.slurm_state() == "PENDING", "requeued job")
    status = query(job)
    assert (status.phase, status.ended) == ("queued", False)
    assert "BeginTime: its time has not come); it can begin at" in status.reason
    assert "it waits for at least " in status.notes[0]
    assert all(host.state is None for host in status.hosts)
    assert set(messages(job)) == {f"{host.name}: cancelled" for host in job.plan.hosts}
    assert job.slurm_state() == "CANCELLED"
    assert query(job).phase == "stopped"


def test_a_stop_is_as_complete_where_slurm_tracks_processes_by_cgroups(
    make_slurm_cluster: MakeSlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_slurm_cluster(proctrack="cgroup", count=2)
    monkeypatch.setenv("SLURM_CONF", str(cluster.config.conf))
    behaviours = ("rank", "rank deaf", "rank daemon", "rank daemon bare")
    job = submit_fake(cluster, tmp_path / "run", nodes=cluster.nodes, behaviours=behaviours)
    job.wait_until_running()
    assert [reply["message"] for reply in stop(job.plan).values()] == ["stopped", "stopped"]
    assert [job.processes(node) for node in cluster.nodes] == [[], []]
    assert query(job).phase == "stopped"
