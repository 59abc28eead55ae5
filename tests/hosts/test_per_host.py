"""A job of its own on each host: one that fails restarts alone, and one command stops all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flagscale.run.rundir import RunDir
from flagscale_testing.farm.farm import wait_until
from flagscale_testing.farm.fixtures import MakeNamespaceFarm
from flagscale_testing.farm.namespaces import NamespaceFarm
from tests.e2e.conftest import Experiment, rank_process
from tests.hosts.conftest import CLEAN_WITHIN
from tests.hosts.test_training import LOCAL, SAVE_INTERVAL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def running_farm(make_namespace_farm: MakeNamespaceFarm) -> NamespaceFarm:
    return make_namespace_farm(2)


def test_a_host_that_fails_restarts_alone(farm: NamespaceFarm, tmp_path: Path) -> None:
    keys = ("experiment.runner.nnodes=2", "+experiment.runner.per_node_task=true")
    job = Experiment(
        tmp_path / "run", (*LOCAL, f"+experiment.runner.hostfile={farm.hostfile(1)}", *keys), tmp_path
    )
    started = job("run")
    assert started.code == 0, started.err
    plan = RunDir(job.exp_dir).read_plan()
    assert plan is not None

    def metrics(rank: int) -> list[dict[str, Any]]:
        path = RunDir(Path(plan.nodes[rank].job_dir)).metrics
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    wait_until(lambda: min(map(len, map(metrics, (0, 1)))) > SAVE_INTERVAL + 2, "both trainings", 200)
    assert [host["metrics"]["iteration"] > 0 for host in job.status()["hosts"]] == [True, True]
    assert {line.partition(": ")[0] for line in job("logs").out.splitlines()} == {
        h.address for h in farm.hosts
    }

    rank_process(farm.processes(farm.hosts[1]), rank=0).kill()
    wait_until(lambda: bool(job.status()["attempts"]), "the end of the attempt", CLEAN_WITHIN)
    between = metrics(1)[-1]["time"]
    wait_until(lambda: metrics(1)[-1]["time"] > between, "the second attempt", 200)
    (attempt,) = job.status()["attempts"]
    assert (attempt["host"], attempt["failure"]["signal"]) == (farm.hosts[1].address, "SIGKILL")
    assert job.status()["state"] == "running"
    # The other host has not noticed.
    iterations = [record["iteration"] for record in metrics(0)]
    assert iterations == list(range(1, len(iterations) + 1))

    stopped = job("stop")
    assert stopped.code == 0, stopped.out + stopped.err
    wait_until(lambda: not any(map(farm.processes, farm.hosts)), "the sessions' end", CLEAN_WITHIN)
    assert job.status()["state"] == "stopped"
