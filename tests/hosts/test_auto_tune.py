"""A tuner over SSH: trials on two hosts that share no files with the tuner but the run directory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flagscale.run.tuner_dir import TunerDir
from flagscale_testing.farm.fixtures import MakeNamespaceFarm
from flagscale_testing.farm.namespaces import NamespaceFarm
from flagscale_testing.jobs import fake_trainer
from flagscale_testing.jobs.demo import TINY, random_tokens
from tests.e2e.conftest import Experiment

SPACE = (
    "tensor_model_parallel_size: [1], pipeline_model_parallel_size: auto, context_parallel_size: [1], "
    "micro_batch_size: [1, 2], use_recompute: [false], use_distributed_optimizer: [true]"
)


@pytest.fixture(scope="module")
def running_farm(make_namespace_farm: MakeNamespaceFarm) -> NamespaceFarm:
    return make_namespace_farm(2)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trials_run_on_all_hosts_and_leave_nothing_there(farm: NamespaceFarm, tmp_path: Path) -> None:
    ends = json.dumps({"pp2,mbs2": "oom"})
    overrides = (
        *TINY,
        *random_tokens(512),
        f"+experiment.runner.hostfile={farm.hostfile(1)}",
        "experiment.runner.nnodes=2",
        "experiment.runner.nproc_per_node=1",
        "train.system.pipeline_model_parallel_size=1",
        "train.model.global_batch_size=4",
        "train.model.micro_batch_size=1",
        f"experiment.task.entrypoint='{fake_trainer.__file__}'",
        f"+experiment.envs.FAKE_ENDS='{ends}'",
        f"+experiment.auto_tuner.space={{{SPACE}}}",
        "+experiment.auto_tuner.control={run_best: false}",
        "+experiment.auto_tuner.algo={name: grid}",
    )
    job = Experiment(tmp_path / "run", overrides, tmp_path)
    done = job("auto_tune")
    assert done.code == 0, done.out + done.err
    entries = TunerDir.of(job.exp_dir).entries()
    states = {
        (one["changes"]["pipeline_model_parallel_size"], one["changes"]["micro_batch_size"]): one["state"]
        for one in entries
    }
    assert states == {
        (1, 1): "measured",
        (1, 2): "measured",
        (2, 1): "measured",
        (2, 2): "out of memory",
    }
    assert all(len(one["hosts"]) == 2 for one in entries)
    assert not any(map(farm.processes, farm.hosts))
