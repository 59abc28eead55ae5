"""This host's rank among those that a cloud platform starts, from its environment or from keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from flagscale.config.schema import Runner
from flagscale.errors import Problem, UserError
from flagscale.plan.runner import Share
from flagscale.runners.cloud import CLOUD, on_this_host

TOLD = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}


def runner(environ: Mapping[str, str], **keys: object) -> Runner:
    given = Runner.model_validate({"type": "cloud", "nnodes": None, **keys})
    return on_this_host(given, environ, str)


def mistakes(environ: Mapping[str, str], **keys: object) -> tuple[Problem, ...]:
    with pytest.raises(UserError) as failure:
        runner(environ, **keys)
    return failure.value.problems


def build_plan(found: Runner) -> tuple[object, ...]:
    return found.nnodes, found.node_rank, found.master_addr, found.master_port


def test_values_come_from_the_environment_of_the_platform() -> None:
    assert build_plan(runner(TOLD)) == (2, 1, "10.0.0.1", 4000)
    assert build_plan(runner({**TOLD, "PET_NODE_RANK": "0"})) == (2, 0, "10.0.0.1", 4000)


def test_keys_override_the_environment() -> None:
    keys = {"nnodes": 3, "node_rank": 0, "master_addr": "node0", "master_port": 1234}
    assert build_plan(runner(TOLD, **keys)) == (3, 0, "node0", 1234)


def test_one_host_needs_no_values() -> None:
    assert build_plan(runner({})) == (1, 0, None, None)


def test_all_missing_values_are_reported_together() -> None:
    rank, address = mistakes({"NNODES": "2"})
    assert rank.what == "`node_rank` is required with type: cloud and 2 hosts"
    assert address.what == "`master_addr` is required with type: cloud and 2 hosts"
    assert "PET_MASTER_ADDR, MASTER_ADDR" in address.hint


@pytest.mark.parametrize(
    ("rank", "what"), [("x", "expected a number, not `x`"), ("2", "host 2 of 2 hosts: ranks start at 0")]
)
def test_a_wrong_value_is_reported_with_its_variable(rank: str, what: str) -> None:
    assert mistakes({**TOLD, "NODE_RANK": rank}) == (Problem(what, "NODE_RANK"),)


def test_an_address_that_cannot_be_a_host_is_reported_with_its_variable() -> None:
    problem = Problem("`node0:29500` has a port or a number of processes in it", "MASTER_ADDR")
    assert mistakes({**TOLD, "MASTER_ADDR": "node0:29500"}) == (problem,)


def test_keys_that_the_platform_determines_are_refused() -> None:
    given = Runner(type="cloud", max_restarts=1, include=["node0"], no_shared_fs=False)
    problems = CLOUD.rules.refusals(given, str)
    assert problems[0].what == "`include` has no effect with type: cloud: the platform chooses the hosts"
    assert [one.where for one in problems] == ["experiment.runner.include", "experiment.runner.max_restarts"]


@pytest.mark.parametrize(("key", "environ", "rank"), [(None, TOLD, 1), (0, TOLD, 0), (None, {}, 0)])
def test_a_command_manages_only_its_own_host(key: int | None, environ: Mapping[str, str], rank: int) -> None:
    assert CLOUD.rules.share(Path("/run"), key, environ) == Share(Path(f"/run/cloud/host_{rank}"), rank)
