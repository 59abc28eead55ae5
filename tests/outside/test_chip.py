"""A chip that another vendor's package adds: launcher and worker know only the two objects it provides."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale.run.rundir import RunDir
from flagscale_testing.jobs.demo import TINY, random_tokens
from flagscale_testing.ranks.training import PATIENCE, read_metrics
from tests.outside.conftest import ROOT, Installed

DEMO = [
    *("--config-path", str(ROOT / "examples/aquila/conf"), "--config-name", "config"),
    *TINY,
    "train.system.pipeline_model_parallel_size=1",
    "train.model.global_batch_size=4",
    "train.model.micro_batch_size=2",
    "train.model.train_iters=4",
    "train.model.eval_iters=0",
    *random_tokens(127),
]
"""The tiny Aquila of the examples, on random tokens."""


@pytest.fixture(scope="module")
def abacus(install: Callable[..., Installed]) -> Installed:
    return install("chip")


def losses(exp_dir: Path) -> list[float]:
    return [line["lm_loss"] for line in read_metrics(exp_dir / "metrics.jsonl") if "lm_loss" in line]


@pytest.mark.slow
@pytest.mark.timeout(2 * PATIENCE + 30)
def test_two_ranks_train_on_the_chip_with_the_loss_of_the_cpu(abacus: Installed, tmp_path: Path) -> None:
    record, on_abacus, on_cpu = (tmp_path / name for name in ("record", "abacus", "cpu"))
    done = abacus.flagscale(
        *DEMO,
        *(f"experiment.exp_dir={on_abacus}", "action=test", "experiment.runner.nproc_per_node=auto"),
        # Selected by the chip's model name; two of its four devices are visible, so there are two ranks.
        *("+experiment.runner.platform=suanpan", "+experiment.envs.ABACUS_VISIBLE_DEVICES='1,3'"),
        f"+experiment.envs.ABACUS_RECORD={record}",
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    plan = RunDir(on_abacus).read_plan()
    assert plan is not None
    assert plan.nodes[0].env["FLAGSCALE_CHIP"] == "abacus"
    assert plan.world_size == 2
    assert "distributed_backend = abacus" in (on_abacus / "logs/host_0_localhost.output").read_text()
    assert {line["mem_bytes"] for line in read_metrics(on_abacus / "metrics.jsonl")} == {8128}

    noted = set(record.read_text().splitlines())
    for rank in ("0", "1"):
        fields = {"patches", "defaults", "backend", "device", "compiles", "is_host_processor"}
        assert {f"{rank} asked {name}" for name in fields} <= noted
        assert f"{rank} patched" in noted
    assert "1 asked memory_bytes" in noted  # the last rank writes the metrics

    done = abacus.flagscale(
        *DEMO,
        *(f"experiment.exp_dir={on_cpu}", "action=test", "experiment.runner.nproc_per_node=2"),
        "+experiment.runner.platform=cpu",
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(losses(on_cpu)) == 4
    assert losses(on_abacus) == pytest.approx(losses(on_cpu), rel=1e-6)


@pytest.mark.slow  # the test above trains two ranks on the chip
@pytest.mark.timeout(PATIENCE + 30)
def test_unequal_meshes_and_blockwise_attention_use_the_devices_and_kernels_of_the_chip(
    abacus: Installed, tmp_path: Path
) -> None:
    record, exp_dir = tmp_path / "record", tmp_path / "run"
    meshes = "[{cp: 2, layers: [1]}, {layers: [1]}]"
    done = abacus.flagscale(
        *DEMO,
        *(f"experiment.exp_dir={exp_dir}", "action=test", "experiment.runner.nproc_per_node=3"),
        *("+experiment.runner.platform=abacus", f"+experiment.envs.ABACUS_RECORD={record}"),
        f"+train.system.hetero={{enable_hetero: true, hetero_process_meshes: {meshes}}}",
        *("train.system.tensor_model_parallel_size=null", "train.system.pipeline_model_parallel_size=null"),
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    noted = set(record.read_text().splitlines())
    assert {f"{rank} set_device {rank} of None" for rank in range(3)} <= noted
    assert "0 asked attention" in noted
    assert len(losses(exp_dir)) == 4


def test_more_ranks_than_visible_devices_are_refused(abacus: Installed, tmp_path: Path) -> None:
    done = abacus.flagscale(
        *DEMO,
        *(f"experiment.exp_dir={tmp_path}", "action=check", "experiment.runner.nproc_per_node=2"),
        *("+experiment.runner.platform=abacus", "+experiment.envs.ABACUS_VISIBLE_DEVICES='3'"),
    )
    assert done.returncode == 2
    assert "nproc_per_node is 2, but this host has 1 abacus devices" in done.stderr


def test_a_service_sees_only_its_own_devices(abacus: Installed) -> None:
    """As on NVIDIA's chips, but by the variable that the package names."""
    program = """
import json, os
from flagscale.node.devices import device_environment
from flagscale.values import Host, Service
host, second = Host(0, "localhost", 2, "abacus"), Service("one", (), devices=(1,))
found = [device_environment(second, host)]
os.environ["ABACUS_VISIBLE_DEVICES"] = "1,3"
print(json.dumps([*found, device_environment(second, host)]))
"""
    done = abacus.python("-c", program)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [{"ABACUS_VISIBLE_DEVICES": "1"}, {"ABACUS_VISIBLE_DEVICES": "3"}]
