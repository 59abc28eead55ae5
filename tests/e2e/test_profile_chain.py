"""Measure this machine, estimate a job on it, tune the job by trials: as a user does, without a GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flagscale.run.tuner_dir import TunerDir
from flagscale_testing.jobs.demo import TINY, random_tokens
from tests.e2e.conftest import ROOT, Experiment

PARTS = ("gemm/float32", "attention/float32", "collectives", "hbm_gb_s", "launch_s")
SPACE = "{tensor_model_parallel_size: [1, 2], pipeline_model_parallel_size: [1], micro_batch_size: [2, 4]}"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_was_measured_estimates_a_job_and_its_trials(tmp_path: Path) -> None:
    chips = tmp_path / "chips.json"
    command = [sys.executable, str(ROOT / "tools/profile_chip.py"), str(chips), "--platform=cpu", "--quick"]
    subprocess.run([*command, *(f"--only={part}" for part in PARTS)], check=True)
    job = Experiment(
        tmp_path / "run",
        (
            *TINY,
            *random_tokens(512),
            f"+experiment.chips='{chips}'",
            "experiment.runner.nproc_per_node=2",
            "experiment.runner.platform=cpu",
            "train.system.pipeline_model_parallel_size=1",
            "train.model.global_batch_size=8",
            "train.model.micro_batch_size=2",
            f"+experiment.auto_tuner.space={SPACE}",
            "+experiment.auto_tuner.control={max_trials: 2, run_best: false}",
        ),
        tmp_path,
    )
    estimated = job("estimate", "output=json")
    assert estimated.code == 0, estimated.err
    told = json.loads(estimated.out)
    assert {stage["chip"] for stage in told["stages"]} == {"cpu"}
    assert told["step"]["seconds"] > 0

    tuned = job("auto_tune", timeout=600)
    assert tuned.code == 0, tuned.out + tuned.err
    entries = TunerDir.of(job.exp_dir).entries()
    assert [one["state"] for one in entries] == ["measured"] * len(entries)
    # Every trial has the estimate of the profiled chip beside what it measured.
    assert all(one["estimate"]["seconds"] > 0 and one["seconds"] > 0 for one in entries)
