"""Jobs in a real cluster that Slurm ends: at the time limit, after a lost host, and what it forgets."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flagscale.runners.slurm import report
from flagscale.runners.slurm.stop import stop
from flagscale.status.watch import current_status
from flagscale_testing.slurm.cluster import SlurmCluster
from flagscale_testing.slurm.fake_jobs import FakeSlurmJob, submit_fake
from flagscale_testing.slurm.fixtures import MakeSlurmCluster

pytestmark = pytest.mark.slow  # Slurm takes up to two minutes for each
Submit = Callable[..., FakeSlurmJob]


@pytest.fixture(scope="module")
def cluster(make_slurm_cluster: MakeSlurmCluster) -> SlurmCluster:
    """A cluster that kills soon, and forgets soon."""
    return make_slurm_cluster(kill_wait=2, min_job_age=40)


@pytest.fixture
def submit(cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Submit]:
    for name in [name for name in os.environ if name.startswith("SLURM")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_CONF", str(cluster.config.conf))
    monkeypatch.setattr(report, "_FRESH", 0.0)
    jobs: list[FakeSlurmJob] = []

    def make(*options: str, **more: object) -> FakeSlurmJob:
        jobs.append(submit_fake(cluster, tmp_path / "run", *options, **more))  # type: ignore[arg-type]
        return jobs[-1]

    yield make
    for job in jobs:
        cluster.run("scancel", job.job_id, code=None)
        for node in cluster.nodes:
            for process in job.processes(node):
                process.kill()


def test_a_job_that_slurm_has_forgotten_is_still_reported(submit: Submit, cluster: SlurmCluster) -> None:
    job = submit(nodes=("n1",)).wait_until_running()
    assert stop(job.plan)[job.plan.hosts[0]]["message"] == "stopped"
    cluster.wait_until(lambda: job.slurm_state() == "", "forgotten job", seconds=180)
    status = current_status(job.plan)
    assert (status.phase, status.ended, status.reason) == ("stopped", True, "")
    assert stop(job.plan)[job.plan.hosts[0]] == {"ok": True, "ended": False, "message": "nothing was running"}


def test_ranks_that_slurm_kills_at_the_time_limit_have_failed_for_that_reason(
    submit: Submit, cluster: SlurmCluster
) -> None:
    job = submit("--time=1", nodes=("n1",), behaviours=("rank deaf",), stop_grace=60.0).wait_until_running()
    cluster.wait_until(lambda: current_status(job.plan).ended, "end of the job", seconds=240)
    status = current_status(job.plan)
    assert (status.phase, status.exit_code) == ("failed", 1), status
    assert status.reason.startswith("the job reached its time limit at ")
    assert status.failure
    assert status.failure[1].message.endswith("the supervisor of this host could not report its end")
    assert job.processes("n1") == []


def test_a_job_whose_host_is_lost_has_failed_for_that_reason(submit: Submit, cluster: SlurmCluster) -> None:
    job = submit("--no-requeue", nodes=("n1", "n2")).wait_until_running()
    cluster.kill_node("n2")
    cluster.wait_until(lambda: job.slurm_state() not in ("RUNNING", "COMPLETING"), "end", seconds=200)
    cluster.wait_until(lambda: current_status(job.plan).ended, "end of the job", seconds=60)
    status = current_status(job.plan)
    assert (status.phase, status.exit_code) == ("failed", 1)
    assert "a host was lost" in status.reason
    replies = {host.name: reply for host, reply in stop(job.plan).items()}
    assert replies["n1"]["ok"]
    assert not replies["n2"]["ok"]
    assert f"look there for processes with FLAGSCALE_RUN_ID={job.plan.run_id}" in replies["n2"]["message"]
    assert job.processes("n1") == []
    cluster.start_node("n2")
