"""Tasks other than a single training inside an allocation: servers on all hosts, and a tuner's trials."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from flagscale.run.tuner_dir import TunerDir
from flagscale_testing.jobs import fake_trainer
from flagscale_testing.jobs.demo import TINY, random_tokens
from flagscale_testing.ports import free_port
from flagscale_testing.slurm.allocations import Shell, salloc
from flagscale_testing.slurm.cluster import SlurmCluster
from tests.e2e.conftest import Experiment
from tests.slurm.inside import toy_commands

SPACE = (
    "tensor_model_parallel_size: [1], pipeline_model_parallel_size: auto, context_parallel_size: [1], "
    "micro_batch_size: [1], use_recompute: [false], use_distributed_optimizer: [true]"
)


@pytest.fixture(scope="module")
def shell(slurm_cluster: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    with salloc(slurm_cluster, tmp_path_factory.mktemp("shell"), "-N2", "-c2", "--mem=800") as made:
        yield made


def test_servers_answer_at_the_addresses_of_their_hosts_until_they_are_stopped(
    shell: Shell, tmp_path: Path
) -> None:
    commands = toy_commands(tmp_path, shell, Path(__file__).with_name("toy_servers.py"))
    port = f"inference={{port: {free_port()}}}"
    commands("run", port)
    urls = [program["url"] for program in commands.status()["programs"]]
    addresses = {node.name: node.address for node in shell.cluster.config.nodes}
    assert [url.rpartition(":")[0] for url in urls] == [f"http://{addresses[name]}" for name in ("n1", "n2")]
    for url in urls:
        with urlopen(f"{url}/health", timeout=30) as reply:
            assert reply.status == 200
    assert "stop it first" in commands("run", port, code=1)
    assert commands("stop", inside=False).splitlines() == ["host 0  n1  stopped", "host 1  n2  stopped"]
    shell.cluster.wait_until(lambda: not commands.processes(), "end of all processes")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_trials_of_a_tuner_are_steps_one_after_another(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in shell.environment().items():
        monkeypatch.setenv(name, value)
    overrides = (
        *TINY,
        *random_tokens(512),
        "experiment.runner.type=slurm",
        "experiment.runner.nnodes=2",
        "experiment.runner.nproc_per_node=1",
        "train.system.pipeline_model_parallel_size=1",
        "train.model.global_batch_size=4",
        "train.model.micro_batch_size=1",
        f"experiment.task.entrypoint='{fake_trainer.__file__}'",
        f"+experiment.auto_tuner.space={{{SPACE}}}",
        "+experiment.auto_tuner.control={run_best: false}",
        "+experiment.auto_tuner.algo={name: grid}",
    )
    job = Experiment(tmp_path / "run", overrides, tmp_path)
    done = job("auto_tune")
    assert done.code == 0, done.out + done.err
    entries = TunerDir.of(job.exp_dir).entries()
    assert {one["changes"]["pipeline_model_parallel_size"]: one["state"] for one in entries} == {
        1: "measured",
        2: "measured",
    }
    assert [len(one["hosts"]) for one in entries] == [2, 2]
    trials = [json.loads(path.read_text()) for path in sorted(tmp_path.rglob("slurm.json"))]
    assert {trial["job_id"] for trial in trials} == {shell.job_id}
    assert len({trial["step"] for trial in trials}) == 2
    for node in ("n1", "n2"):
        shell.cluster.wait_until(lambda node=node: not shell.cluster.processes(node), f"end on {node}")
