"""Mistakes that the commands report before a submission, where Slurm itself would let the job wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale_testing.slurm.cluster import SlurmCluster
from tests.slurm.jobs import SlurmExperiment


@pytest.fixture
def job(slurm_cluster: SlurmCluster, tmp_path: Path) -> SlurmExperiment:
    return SlurmExperiment(slurm_cluster, tmp_path / "job").write()


def test_what_could_never_begin_is_refused_with_all_reasons_and_nothing_is_submitted(
    job: SlurmExperiment,
) -> None:
    printed = job("run", "experiment.runner.slurm.partition=mian", code=1)
    assert (
        "the job was not submitted:\n- Slurm: there is no partition `mian`; did you mean `main`?" in printed
    )
    wishes = ("experiment.runner.slurm.partition=high", "+experiment.runner.slurm.time=2:00:00")
    printed = job("run", *wishes, "experiment.runner.nnodes=4", "train.model.global_batch_size=4", code=1)
    assert "partition high: time: 2:00:00 is 2h00m, but its limit is 1h00m" in printed
    assert "partition high: it has 3 hosts, and the job needs 4" in printed
    assert "Traceback" not in printed
    assert job.cluster.run("squeue", "--noheader").stdout == ""
    assert not (job.folder / "out").exists()


def test_the_check_reports_slurm_the_partition_and_the_folder(job: SlurmExperiment) -> None:
    printed = job("check")
    assert ", cluster tiny: its controller answers" in printed
    assert "ok      Slurm  partition main: 3 of 3 fitting hosts can be used" in printed
    assert f"ok      here  {job.folder}/out is writable" in printed
    printed = job("check", "+experiment.runner.slurm.constraint=huge", code=1)
    assert "FAILED  Slurm  partition main: only 0 of its 3 hosts also have `constraint: huge`" in printed


def test_without_slurm_a_start_says_so(job: SlurmExperiment) -> None:
    printed = job("run", code=1, PATH="/nonexistent")
    assert "no Slurm here: `scontrol` is not installed; use experiment.runner.type=ssh" in printed
    assert "Traceback" not in printed
