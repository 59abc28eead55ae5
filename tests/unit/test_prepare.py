"""The numbers of hosts with which a job may continue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flagscale.config.schema import Commands, Environment, Experiment, Runner, Task
from flagscale.config.source_map import SourceMap
from flagscale.engines.megatron.adapter import MEGATRON
from flagscale.errors import UserError
from flagscale.plan.prepare import _fewer_hosts
from flagscale.values import Host
from tests.unit.conftest import TASK


def fewer(nnodes: object, slots: tuple[int, ...] = (2, 2, 2, 2), **changes: Any) -> tuple[int, ...]:
    experiment = Experiment(
        name="demo",
        exp_dir=Path("/r"),
        task=Task(backend="megatron", entrypoint="megatron.flagscale.train_gpt"),
        runner=Runner(nnodes=nnodes),  # type: ignore[arg-type]
        envs=Environment(),
        cmds=Commands(),
        arguments={**TASK, **changes},
    )
    hosts = tuple(Host(rank, f"node{rank}", count, "nvidia") for rank, count in enumerate(slots))
    job = MEGATRON.build(experiment, hosts, SourceMap())
    return _fewer_hosts(experiment, MEGATRON, job, SourceMap())


@pytest.mark.parametrize("nnodes", [None, 4, "4", "4:4"])
def test_a_single_number_of_hosts_allows_no_fewer(nnodes: object) -> None:
    assert fewer(nnodes) == ()
    # The hosts may differ then.
    assert fewer(nnodes, slots=(4, 2, 1, 1)) == ()


@pytest.mark.parametrize(
    ("nnodes", "changes", "expected"),
    [
        # A global batch of 16 in micro-batches of 2 is not divisible by 6 ranks.
        ("1:4", {}, (2, 1)),
        ("2:4", {}, (2,)),
        ("1:4", {"global_batch_size": 48}, (3, 2, 1)),
        ("1:4", {"tensor_model_parallel_size": 4}, (2,)),
        ("1:4", {"pipeline_model_parallel_size": 2, "global_batch_size": 48}, (3, 2, 1)),
    ],
)
def test_fewer_hosts_must_fit_the_parallel_degrees(
    nnodes: str, changes: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert fewer(nnodes, **changes) == expected


def refusal(*args: Any, **changes: Any) -> str:
    with pytest.raises(UserError) as raised:
        fewer(*args, **changes)
    (problem,) = raised.value.problems
    assert problem.where == "experiment.runner.nnodes"
    return problem.what


def test_a_range_without_a_usable_number_is_an_error() -> None:
    assert refusal("3:4").startswith(
        "the job does not fit any number of hosts from 3 to 3 (with 3: global_batch"
    )
    assert refusal("1:4", tensor_model_parallel_size=4, pipeline_model_parallel_size=2).startswith(
        "the job does not fit any number of hosts from 1 to 3 (with 3: tensor 4 x pipeline 2"
    )
