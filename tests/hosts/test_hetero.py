"""Unequal meshes across hosts: types in the hostfile, and a mesh that fails ends the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale_testing.farm.farm import wait_until
from flagscale_testing.farm.fixtures import MakeNamespaceFarm
from flagscale_testing.farm.namespaces import NamespaceFarm
from tests.e2e.conftest import Experiment, rank_process
from tests.hosts.conftest import CLEAN_WITHIN
from tests.hosts.test_training import LOCAL

STEPS = 6
MESHES = "[{type:cpu,tp:2,layers:[1]},{type:cpu,dp:2,layers:[1]}]"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def running_farm(make_namespace_farm: MakeNamespaceFarm) -> NamespaceFarm:
    return make_namespace_farm(2)


def over_meshes(farm: NamespaceFarm, folder: Path, *more: str) -> Experiment:
    """Return the demo with one mesh per host, of two ranks each."""
    folder.mkdir()
    hostfile = folder / "hostfile"
    hostfile.write_text("".join(f"{host.address} slots=2 type=cpu\n" for host in farm.hosts))
    words = (
        f"+experiment.runner.hostfile={hostfile}",
        "experiment.runner.nnodes=2",
        "experiment.runner.nproc_per_node=2",
        "experiment.runner.max_restarts=0",
        "train.system.pipeline_model_parallel_size=null",
        f"+train.system.hetero_process_meshes={MESHES}",
    )
    return Experiment(folder / "run", (*LOCAL, *words, *more), folder)


def test_meshes_on_two_hosts_train_like_one_process(farm: NamespaceFarm, tmp_path: Path) -> None:
    steps = f"train.model.train_iters={STEPS}"
    one = Experiment(tmp_path / "one", (*LOCAL, steps), tmp_path)
    meshes = over_meshes(farm, tmp_path / "meshes", steps)
    curves = []
    for job in (one, meshes):
        done = job("test", timeout=300)
        assert done.code == 0, done.out + done.err
        curves.append([record["lm_loss"] for record in job.metrics()])
    assert len(curves[0]) == STEPS
    assert curves[1] == pytest.approx(curves[0], abs=2e-5)


def test_a_rank_that_dies_ends_the_other_mesh_too(farm: NamespaceFarm, tmp_path: Path) -> None:
    job = over_meshes(farm, tmp_path / "meshes")
    started = job("run")
    assert started.code == 0, started.err
    job.wait_for_iteration(2, seconds=300)
    rank_process(farm.processes(farm.hosts[1]), rank=3).kill()
    wait_until(lambda: not any(map(farm.processes, farm.hosts)), "the end of both meshes", CLEAN_WITHIN)
    status = job.status()
    assert status["state"] == "failed"
    assert (status["failure"]["rank"], status["failure"]["signal"]) == (3, "SIGKILL")
