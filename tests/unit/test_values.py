"""Plans are written and read back as the same value."""

from __future__ import annotations

import json
from dataclasses import MISSING, fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagscale.values import PLAN_VERSION, Channel, Host, LaunchPlan, Machine, NodeCommand, Recovery, Service
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
    services=st.lists(
        st.builds(
            Service,
            name=TEXT,
            argv=st.lists(TEXT).map(tuple),
            url=TEXT,
            model=TEXT,
            env=st.dictionaries(TEXT, TEXT, max_size=2),
        ),
        max_size=2,
    ).map(tuple),
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
    channel=st.none() | st.builds(Channel, TEXT, st.integers(1, 65535)),
    recovery=st.builds(
        Recovery,
        max_restarts=st.integers(0, 9),
        restart_timeout=st.floats(0, 1e6),
        hang_timeout=st.none() | st.floats(0, 1e6),
        fewer_hosts=st.lists(st.integers(1, 9)).map(tuple),
    ),
    ssh_port=st.none() | st.integers(1, 65535),
    connect_timeout=st.floats(0, 1e6),
    shared_fs=st.booleans(),
    host_paths=st.dictionaries(TEXT, st.dictionaries(TEXT, TEXT, max_size=2), max_size=2),
    started_on=st.none() | st.builds(Machine, TEXT, TEXT),
)


FULL = replace(
    make_plan(Path("/a/b/run"), 2, 2, envs={"DATA": "/a/b/data", "LIKE": "/a/bc", "PLAIN": "x"}),
    before_start="cd /a/b",
    after_stop="true",
    runner="carrier_pigeon",
    transport="telepathy",
    slurm={"partition": "main"},
    job_dir="/a/b/job",
    channel=Channel("10.0.0.1", 29501),
    recovery=Recovery(max_restarts=3, restart_timeout=30.0, hang_timeout=60.0, fewer_hosts=(1,)),
    ssh_port=2222,
    connect_timeout=5.0,
    ready_timeout=60.0,
    shared_fs=False,
    host_paths={"node1": {"/a/b": "/elsewhere", "/a/b/data": "/fast", "/source": "/opt/flagscale"}},
    started_on=Machine("node7", "a boot"),
)


@given(PLANS)
def test_a_plan_survives_its_json(plan: LaunchPlan) -> None:
    assert LaunchPlan.from_json(plan.to_json()) == plan


def test_every_field_of_a_plan_survives_its_json() -> None:
    plan = FULL
    for of in (plan, plan.recovery):
        for field in fields(of):
            default = field.default if field.default_factory is MISSING else field.default_factory()
            if field.name != "version":
                assert getattr(of, field.name) != default, f"give {field.name} a value here"
    again = LaunchPlan.from_json(plan.to_json())
    assert again == plan
    assert isinstance(again.recovery.fewer_hosts, tuple)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "null", "[]", "{}", '{"version": 0}', f'{{"version": {PLAN_VERSION}}}'),
        *(f'{{"version": {PLAN_VERSION}, "nodes": {nodes}}}' for nodes in ("[]", "[{}]", "3")),
    ],
)
def test_text_that_is_not_a_plan_is_a_value_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"plan|Expecting"):
        LaunchPlan.from_json(text)


def test_a_plan_with_an_unknown_field_is_refused(tmp_path: Path) -> None:
    raw = json.loads(make_plan(tmp_path).to_json())
    with pytest.raises(ValueError, match="not a launch plan"):
        LaunchPlan.from_json(json.dumps({**raw, "more": 1}))


def test_host_and_job() -> None:
    job = make_job(2, 3)
    assert job.world_size == 5
    assert [host.label for host in job.hosts] == ["host_0_node0", "host_1_node1"]
    assert replace(job, hosts=job.hosts[:1]).world_size == 2


def test_a_host_without_paths_of_its_own_reads_the_plan_unchanged() -> None:
    assert FULL.on_host("node0") is FULL
    assert make_plan(Path("/r"), 2).on_host("localhost").host_paths == {}


def test_paths_have_other_names_on_a_host() -> None:
    there = FULL.on_host("node1")
    assert (there.exp_dir, there.source_root) == ("/elsewhere/run", "/opt/flagscale")
    env = there.nodes[1].env
    # The longest prefix wins, and a prefix ends where a name ends.
    assert (env["DATA"], env["LIKE"], env["PLAIN"]) == ("/fast", "/a/bc", "x")
    assert env["FLAGSCALE_HEARTBEAT_FILE"] == "/elsewhere/run/logs/pids/host_1_node1.heartbeat"
    assert there.nodes[1].options["log-dir"] == "/elsewhere/run/logs/details/host_1_node1"
    assert there.host_paths == FULL.host_paths
    assert (there.run_id, there.channel, there.recovery) == (FULL.run_id, FULL.channel, FULL.recovery)
    # Shell commands are not paths.
    assert there.before_start == "cd /a/b"


@pytest.mark.parametrize(
    ("names", "path", "there"),
    [
        ({"/a/b": "/x"}, "/a/b", "/x"),
        ({"/a/b": "/x"}, "/a/b/c", "/x/c"),
        ({"/a/b": "/x"}, "/a/bc", "/a/bc"),
        ({"/a/b": "/x"}, "/q/a/b", "/q/a/b"),
        ({"/a/b/": "/x"}, "/a/b/c", "/x/c"),
        ({"/a/b/": "/x"}, "/a/b", "/x"),
        ({"/a/b": "/x/"}, "/a/b/c", "/x/c"),
        ({"/a": "/x", "/a/b": "/y"}, "/a/b/c", "/y/c"),
        ({"/a/b": "/y", "/a": "/x"}, "/a/c", "/x/c"),
        ({"/": "/x"}, "/a", "/x/a"),
        ({"/a": "/"}, "/a", "/"),
        ({"/a": "/"}, "/a/b", "/b"),
        ({"/": "/x"}, "", ""),
        # Once only: a replaced path is not replaced again.
        ({"/a": "/b", "/b": "/c"}, "/a/d", "/b/d"),
    ],
)
def test_prefixes_of_paths(names: dict[str, str], path: str, there: str) -> None:
    plan = replace(FULL, exp_dir=path, host_paths={"node1": names})
    assert plan.on_host("node1").exp_dir == plan.path_on("node1", path) == there
