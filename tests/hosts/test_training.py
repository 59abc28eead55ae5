"""Real training on three hosts with the same command as on one: only a hostfile is added."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale.run.rundir import RunDir
from flagscale_testing.farm.farm import wait_until
from flagscale_testing.farm.fixtures import MakeNamespaceFarm
from flagscale_testing.farm.namespaces import NamespaceFarm
from flagscale_testing.jobs.demo import LONG
from tests.e2e.conftest import SMALL, Experiment, rank_process
from tests.hosts.conftest import CLEAN_WITHIN, logins

SAVE_INTERVAL = 10
LOCAL = [
    *SMALL,
    "experiment.runner.nproc_per_node=1",
    "~train.data.train_data_path",
    "~train.data.valid_data_path",
    "train.data.tokenizer.tokenizer_type=NullTokenizer",
    "train.data.tokenizer.tokenizer_model=null",
    "+train.data.tokenizer.vocab_size=127",
    "+train.data.mock_data=true",
    "train.system.pipeline_model_parallel_size=1",
    "train.model.global_batch_size=6",
    "train.model.eval_iters=0",
    *LONG,
    f"train.system.checkpoint.save_interval={SAVE_INTERVAL}",
    "+experiment.runner.max_restarts=1",
]


@pytest.fixture(scope="module")
def running_farm(make_namespace_farm: MakeNamespaceFarm) -> NamespaceFarm:
    return make_namespace_farm(3)


@pytest.mark.timeout(900)
def test_training_on_three_hosts_survives_a_kill_and_can_be_stopped(
    farm: NamespaceFarm, tmp_path: Path
) -> None:
    hosts = [f"+experiment.runner.hostfile={farm.hostfile(1)}", "experiment.runner.nnodes=3"]
    job = Experiment(tmp_path / "run", (*LOCAL, *hosts), tmp_path)
    names = [host.address for host in farm.hosts]
    before = [logins(host) for host in farm.hosts]
    started = job("run")
    assert started.code == 0, started.err
    assert "3 ranks on 3 hosts" in started.out
    # The session that answered the questions before the start has become the supervisor.
    assert [logins(host) - earlier for host, earlier in zip(farm.hosts, before, strict=True)] == [1, 1, 1]
    job.wait_for_iteration(SAVE_INTERVAL + 2)

    query = job("query")
    assert query.code == 0
    assert [f"host {rank}  {name}  running" in query.out for rank, name in enumerate(names)] == [True] * 3
    assert {line.partition(": ")[0] for line in job("logs").out.splitlines()} == set(names)
    # torchrun forwards the lines of the ranks a moment later.
    wait_until(lambda: f"iteration {SAVE_INTERVAL}/" in job("logs").out, "the log", 120)

    reached = job.metrics()[-1]["iteration"]
    victim = rank_process(farm.processes(farm.hosts[1]), rank=1)
    victim.kill()
    # The second attempt discards the metrics after its checkpoint, then continues.
    wait_until(lambda: bool(job.status()["attempts"]), "the end of the first attempt", CLEAN_WITHIN)
    between, newest = job.metrics()[-1], _checkpointed(job)
    assert newest >= reached - SAVE_INTERVAL
    wait_until(lambda: job.metrics()[-1]["time"] > between["time"], "the second attempt", 240)
    iterations = [record["iteration"] for record in job.metrics()]
    assert iterations == list(range(1, len(iterations) + 1))
    begun = next(record["iteration"] for record in job.metrics() if record["time"] > between["time"])
    assert begun == newest + 1, "it continues from the newest checkpoint"
    status = job.status()
    assert status["state"] == "running"
    ((host, failure),) = [(attempt["host"], attempt["failure"]) for attempt in status["attempts"]]
    assert (host, failure["rank"], failure["signal"]) == (names[1], 1, "SIGKILL")

    stopped = job("stop")
    assert stopped.code == 0, stopped.out + stopped.err
    wait_until(lambda: not any(map(farm.processes, farm.hosts)), "the sessions' end", CLEAN_WITHIN)
    assert job.status()["state"] == "stopped"
    # The stop has saved a checkpoint.
    assert _checkpointed(job) == job.metrics()[-1]["iteration"]


def _checkpointed(job: Experiment) -> int:
    return int((RunDir(job.exp_dir).checkpoints / "latest_checkpointed_iteration.txt").read_text())
