"""Plans are written and read back as the same value."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagscale.job import Host, LaunchPlan, NodeCommand
from tests.unit.plans import make_job, make_plan

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
NODES = st.builds(
    NodeCommand,
    host=st.builds(Host, rank=st.integers(0, 9), name=TEXT, slots=st.integers(1, 9), platform=TEXT),
    argv=st.lists(TEXT).map(tuple),
    env=st.dictionaries(TEXT, TEXT),
    cwd=TEXT,
    failure_file=TEXT,
    stop_grace=st.floats(0, 1e6),
)
PLANS = st.builds(
    LaunchPlan,
    **dict.fromkeys(
        (
            "run_id",
            "name",
            "task_type",
            "engine",
            "engine_version",
            "layout",
            "exp_dir",
            "python",
            "source_root",
        ),
        TEXT,
    ),
    world_size=st.integers(1, 9),
    before_start=TEXT,
    after_stop=TEXT,
    start_timeout=st.floats(0, 1e6),
    nodes=st.lists(NODES, min_size=1, max_size=3).map(tuple),
    version=st.just(1),
)


@given(PLANS)
def test_a_plan_survives_its_json(plan: LaunchPlan) -> None:
    assert LaunchPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", "{}", '{"version": 0}', '{"version": 1}', '{"version": 1, "nodes": [{}]}']
)
def test_text_that_is_no_plan_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"plan|Expecting"):
        LaunchPlan.from_json(text)


def test_a_plan_with_another_field_is_of_another_version(tmp_path: Path) -> None:
    raw = json.loads(make_plan(tmp_path).to_json())
    with pytest.raises(ValueError, match="not a launch plan"):
        LaunchPlan.from_json(json.dumps({**raw, "more": 1}))


def test_host_and_job() -> None:
    job = make_job(2, 3)
    assert job.world_size == 5
    assert [host.label for host in job.hosts] == ["host_0_node0", "host_1_node1"]
    assert replace(job, hosts=job.hosts[:1]).world_size == 2
