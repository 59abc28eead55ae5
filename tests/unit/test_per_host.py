"""A job of its own on each host: its plan, its folders, and what cannot be combined with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flagscale.config.schema import Commands, Environment, Experiment, Runner, Task
from flagscale.config.source_map import SourceMap
from flagscale.engines.megatron.adapter import MEGATRON
from flagscale.engines.vllm.adapter import VLLM
from flagscale.errors import UserError
from flagscale.plan.per_host import job_per_host
from flagscale.remote.launcher import HostStatus
from flagscale.run.logs import path_of
from flagscale.run.state import HostState
from flagscale.runners.cloud import CLOUD
from flagscale.status.model import job_status, status_json
from flagscale.status.progress import Progress
from flagscale.status.text import started_text, status_text
from flagscale.values import Host, Job, LaunchPlan
from tests.unit.conftest import TASK
from tests.unit.plans import make_plan

Make = Callable[..., Job]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(*slots: int, runner: dict[str, Any] | None = None, **changes: Any) -> Job:
        experiment = Experiment(
            name="demo",
            exp_dir=tmp_path,
            task=Task(backend="megatron", entrypoint="megatron.flagscale.train_gpt"),
            runner=Runner.model_validate({"per_node_task": True, **(runner or {})}),
            envs=Environment(),
            cmds=Commands(),
            arguments={**TASK, **changes},
        )
        hosts = tuple(Host(rank, f"node{rank}", count, "chip") for rank, count in enumerate(slots))
        kinds = tuple(Host(host.rank, host.name, host.slots, "nvidia") for host in hosts)
        return job_per_host(experiment, MEGATRON, kinds, SourceMap())

    return make


def plan_of(job: Job, folder: Path, **runner: Any) -> LaunchPlan:
    hosts = tuple(replace(host, platform="chip") for host in job.hosts)
    return make_plan(folder, job=replace(job, hosts=hosts), per_node_task=True, **runner)


def test_each_host_has_a_job_of_one_host(make: Make, tmp_path: Path) -> None:
    job = make(2, 4, tensor_model_parallel_size=2)
    assert (job.world_size, job.layout) == (6, "tp2 on each host")
    plan = plan_of(job, tmp_path)
    assert plan.channel is None
    assert plan.has_own_jobs
    assert plan.recovery.fewer_hosts == ()
    for node, name in zip(plan.nodes, ("host_0_node0", "host_1_node1"), strict=True):
        own = tmp_path / "hosts" / name
        assert node.options["nnodes"] == "1"
        assert node.options["nproc-per-node"] == str(node.host.slots)
        assert node.options["rdzv-endpoint"] == "127.0.0.1:0"
        assert "node-rank" not in node.options
        assert node.program[node.program.index("--save") + 1] == str(own / "checkpoints")
        assert path_of(plan, node, "metrics") == own / "metrics.jsonl"
        assert path_of(plan, node, "output") == tmp_path / "logs" / f"{name}.output"
    assert LaunchPlan.from_json(plan.to_json()) == plan


def test_a_port_that_is_given_is_used_on_each_host(make: Make, tmp_path: Path) -> None:
    plan = plan_of(make(1, 1), tmp_path, master_port=1234, master_addr="10.0.0.1")
    for node in plan.nodes:
        assert (node.options["master-addr"], node.options["master-port"]) == ("127.0.0.1", "1234")


def test_the_degrees_have_to_fit_each_host_alone(make: Make) -> None:
    with pytest.raises(UserError) as raised:
        make(2, 3, 3, tensor_model_parallel_size=2)
    (problem,) = raised.value.problems
    assert "2 ranks hold one model, which does not divide the job's 3 ranks" in problem.what


def test_what_cannot_be_combined_with_it(make: Make) -> None:
    with pytest.raises(UserError, match="no host replaces another: give one number"):
        make(1, 1, runner={"nnodes": "1:2"})
    with pytest.raises(UserError, match="would write to the same `save`") as raised:
        make(1, 1, save="/ckpt")
    assert raised.value.problems[0].where == "train.save"
    assert make(1, 1, save="/ckpt", runner={"no_shared_fs": True}).own_roles
    assert "nnodes: 1" in CLOUD.rules.refused["per_node_task"]
    experiment = Experiment(
        name="demo",
        exp_dir=Path("/r"),
        task=Task(type="serve", backend="vllm"),
        runner=Runner(per_node_task=True),
        envs=Environment(),
        cmds=Commands(),
        arguments={"model": "m"},
    )
    with pytest.raises(UserError, match="only trainings can run as one job per host"):
        VLLM.build(experiment, (Host(0, "a", 1, "nvidia"),), SourceMap())


def test_every_host_shows_its_own_progress(make: Make, tmp_path: Path) -> None:
    plan = plan_of(make(1, 1), tmp_path)
    states = [HostState("demo-1", "running"), HostState("demo-1", "failed")]
    hosts = [HostStatus(host, state) for host, state in zip(plan.hosts, states, strict=True)]
    own = {rank: Progress({"iteration": rank + 3, "train_iters": 9}, None) for rank in (0, 1)}
    status = replace(job_status(plan, hosts, own[0]), own_progress=own)
    text = status_text(status)
    assert "host 0  node0  running  iteration 3/9" in text
    assert "host 1  node1  failed  iteration 4/9" in text
    assert [host["metrics"]["iteration"] for host in status_json(status)["hosts"]] == [3, 4]
    assert not status.ended
    assert not status.is_lost
    assert str(tmp_path / "hosts" / "host_1_node1") in started_text(plan)
