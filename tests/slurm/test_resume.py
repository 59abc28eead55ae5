"""A real training over two nodes, which saves before its time limit, begins again, and continues."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from flagscale_testing.ports import free_port
from flagscale_testing.slurm.cluster import SlurmCluster
from tests.hosts.test_training import LOCAL
from tests.slurm.jobs import ROOT, SlurmExperiment


@dataclass(frozen=True)
class Training(SlurmExperiment):
    """The demo on two nodes."""

    port: int

    def words(self, action: str, *more: str) -> list[str]:
        folder = ["--config-path", str(ROOT / "examples/aquila/conf"), "--config-name", "config"]
        keys = [
            f"experiment.exp_dir={self.folder}/out",
            "experiment.runner.type=slurm",
            "+experiment.runner.platform=cpu",
            "+experiment.runner.nnodes=2",
            f"+experiment.runner.master_port={self.port}",
            "+experiment.runner.slurm.requeue=true",
        ]
        given = [word for word in LOCAL if "global_batch_size" not in word]
        program = [sys.executable, str(ROOT / "run.py")]
        batch = "train.model.global_batch_size=4"
        return [*program, *folder, *given, batch, *keys, f"action={action}", *more]

    def metrics(self) -> list[int]:
        path = self.run_dir.metrics
        lines = path.read_text().splitlines() if path.exists() else []
        records = [json.loads(line) for line in lines]
        return [record["iteration"] for record in records if "iteration_ms" in record]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_training_continues_after_its_time_limit(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    job = Training(slurm_cluster, tmp_path, free_port())
    job("run")
    job.wait(lambda: len(job.metrics()) >= 2, "two iterations")
    job.announce_limit()
    job.wait(lambda: job.job().begins[-1].end, "an end")
    assert job.job().begins[-1].end == "time limit"
    tracker = job.run_dir.checkpoints / "latest_checkpointed_iteration.txt"
    saved = int(tracker.read_text())
    assert saved == job.metrics()[-1]
    job.begin_now()
    job.wait(lambda: job.metrics()[-1] >= saved + 2, "more iterations")
    assert job.metrics() == list(range(1, len(job.metrics()) + 1))
    assert "stopped" in job("stop")
    assert int(tracker.read_text()) == job.metrics()[-1]
    assert [begin.end for begin in job.job().begins] == ["time limit", "stopped"]
