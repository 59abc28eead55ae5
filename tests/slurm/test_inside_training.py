"""A real training inside an allocation: two hosts with two ranks each, TP2 and PP2, stopped and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flagscale.run.rundir import RunDir
from flagscale_testing.jobs.demo import LONG, random_tokens
from flagscale_testing.slurm.allocations import Shell, salloc
from flagscale_testing.slurm.cluster import SlurmCluster
from tests.e2e.conftest import SMALL, Experiment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

TRAINING = [
    *SMALL,
    *random_tokens(127),
    *LONG,
    "experiment.runner.type=slurm",
    "experiment.runner.nnodes=2",
    "experiment.runner.nproc_per_node=2",
    "train.system.tensor_model_parallel_size=2",
    "train.system.pipeline_model_parallel_size=2",
    "train.model.eval_iters=0",
    "train.system.checkpoint.save_interval=10",
]


@pytest.fixture(scope="module")
def shell(slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with salloc(slurm_cluster, tmp_path_factory.mktemp("shell"), "-N2", "-c2", "--mem=800") as made:
        yield made


def test_a_training_is_stopped_with_a_checkpoint_and_continues_from_it(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in shell.environment().items():
        monkeypatch.setenv(name, value)
    job = Experiment(tmp_path / "run", tuple(TRAINING), tmp_path)
    started = job("run")
    assert started.code == 0, started.out + started.err
    assert "4 ranks on 2 hosts" in started.out
    job.wait_for_iteration(12)
    stopped = job("stop")
    assert stopped.code == 0, stopped.out + stopped.err
    assert stopped.out.splitlines() == ["host 0  n1  stopped", "host 1  n2  stopped"]
    saved = int((RunDir(job.exp_dir).checkpoints / "latest_checkpointed_iteration.txt").read_text())
    reached = job.metrics()[-1]["iteration"]
    assert saved == reached, "the stop has saved"
    again = job("run")
    assert again.code == 0, again.out + again.err
    job.wait_for_iteration(reached + 1)
    assert [record["iteration"] for record in job.metrics()] == list(range(1, reached + 2))
    shell.cluster.run("scancel", shell.job_id)
    for node in ("n1", "n2"):
        shell.cluster.wait_until(lambda node=node: not shell.cluster.processes(node), f"end on {node}")
    assert job.status()["state"] == "stopped"
