"""Where ranks are placed, how they find each other, and their environment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagscale.config.schema import Commands
from flagscale.plan.placement import new_run_id, secrets
from flagscale.values import Service, address_of
from tests.unit.plans import make_experiment, make_job, make_plan

RUN = Path("/runs/demo")


def test_plan_of_one_host() -> None:
    plan = make_plan(RUN, 4, cmds=Commands(before_start="module load x", after_stop="rm y"), start_timeout=5)
    (node,) = plan.nodes
    assert node.argv == ("/usr/bin/python3", "-m", "megatron.flagscale.torchrun")
    assert node.program == ("--module", "a.module", "--lr", "1e-3")
    assert node.options == {
        "nnodes": "1",
        "nproc-per-node": "4",
        "rdzv-backend": "c10d",
        "rdzv-endpoint": "127.0.0.1:0",
        "local-addr": "127.0.0.1",
        "rdzv-id": "demo-1",
        "max-restarts": "0",
        "shutdown-timeout": "3",
        "log-dir": "/runs/demo/logs/details/host_0_localhost",
        "redirects": "3",
        "tee": "3",
    }
    assert (plan.before_start, plan.after_stop, plan.start_timeout) == ("module load x", "rm y", 5)
    assert (plan.world_size, plan.layout, plan.engine_version) == (4, "tp2 x dp2", "1.2.3")
    assert (node.stop_grace, node.cwd) == (7.0, "/")
    assert node.failure_file == "/runs/demo/logs/pids/host_0_localhost.failure.json"


@given(st.lists(st.integers(1, 16), min_size=2, max_size=6))
def test_every_host_has_its_ranks_and_the_same_rendezvous(slots: list[int]) -> None:
    plan = make_plan(RUN, *slots)
    assert plan.world_size == sum(slots)
    found = [node.options for node in plan.nodes]
    assert [int(option["nproc-per-node"]) for option in found] == slots
    assert [int(option["node-rank"]) for option in found] == list(range(len(slots)))
    rendezvous = {
        tuple(option[name] for name in ("nnodes", "rdzv-backend", "master-addr", "master-port", "rdzv-id"))
        for option in found
    }
    assert rendezvous == {(str(len(slots)), "static", "node0", "29500", "demo-1")}
    for field in ("failure_file", "host"):
        assert len({getattr(node, field) for node in plan.nodes}) == len(slots)
    assert len({option["log-dir"] for option in found}) == len(slots)
    assert [node.env["FLAGSCALE_HOST_RANK"] for node in plan.nodes] == [
        str(rank) for rank in range(len(slots))
    ]


@pytest.mark.parametrize(
    ("slots", "runner", "expected"),
    [
        (
            (4,),
            {"master_port": 1234},
            {"rdzv-backend": "static", "master-addr": "127.0.0.1", "master-port": "1234"},
        ),
        ((4,), {"master_addr": "10.0.0.1"}, {"rdzv-backend": "static", "master-addr": "10.0.0.1"}),
        ((4,), {"local_addr": "10.0.0.2"}, {"rdzv-backend": "c10d", "local-addr": "10.0.0.2"}),
        (
            (1, 1),
            {"master_addr": "10.0.0.1", "master_port": 7},
            {"master-addr": "10.0.0.1", "master-port": "7"},
        ),
        ((1, 1), {"rdzv_backend": "static"}, {"rdzv-backend": "static", "master-port": "29500"}),
        ((1, 1), {"rdzv_backend": "c10d", "master_addr": "m"}, {"rdzv-endpoint": "m:29500"}),
        ((4,), {"rdzv_backend": "static"}, {"rdzv-backend": "static", "master-addr": "127.0.0.1"}),
        ((1, 1), {"rdzv_endpoint": "node0:5"}, {"rdzv-backend": "c10d", "rdzv-endpoint": "node0:5"}),
        (
            (1, 1),
            {"rdzv_backend": "etcd", "rdzv_endpoint": "h:1"},
            {"rdzv-backend": "etcd", "rdzv-endpoint": "h:1"},
        ),
        (
            (1, 1),
            {"rdzv_id": "mine", "rdzv_conf": "timeout=9"},
            {"rdzv-id": "mine", "rdzv-conf": "timeout=9"},
        ),
        (
            (4,),
            # The supervisors restart the job, on all hosts together.
            {"max_restarts": 2, "monitor_interval": 0.5},
            {"max-restarts": "0", "monitor-interval": "0.5"},
        ),
        (
            (4,),
            {"log_dir": "/l", "redirects": "1", "tee": "0"},
            {"log-dir": "/l", "redirects": "1", "tee": "0"},
        ),
    ],
)
def test_torchrun_keys_are_passed_to_torchrun(
    slots: tuple[int, ...], runner: dict[str, object], expected: dict[str, str]
) -> None:
    for node in make_plan(RUN, *slots, **runner).nodes:
        assert {name: node.options[name] for name in expected} == expected


def test_user_environment_overrides_everything_except_run_tags() -> None:
    envs = {"SHARED": "user", "FLAGSCALE_RUN_ID": "stolen", "PYTHONPATH": "/mine", "API_KEY": "geheim"}
    plan = make_plan(RUN, 4, envs=envs)
    assert plan.nodes[0].env == {
        "CHIP_MODE": "fast",
        "FLAGSCALE_CHIP": "chip",
        "ORDER": "kept",
        "ROLE": "yes",
        "SHARED": "user",
        "PYTHONPATH": "/source:/source/vllm:/source/megatron-energon:/mine",
        "FLAGSCALE_RUN_ID": "demo-1",
        "FLAGSCALE_HOST_RANK": "0",
        "FLAGSCALE_FAILURE_FILE": "/runs/demo/logs/pids/host_0_localhost.failure.json",
        "FLAGSCALE_HEARTBEAT_FILE": "/runs/demo/logs/pids/host_0_localhost.heartbeat",
    }


def test_secrets_are_not_in_the_plan() -> None:
    job, envs = make_job(), {"API_KEY": "sehr geheim", "PLAIN": "x"}
    assert secrets(job, make_experiment(RUN, envs=envs)) == {
        "WANDB_API_KEY": "geheim",
        "API_KEY": "sehr geheim",
    }
    assert "geheim" not in make_plan(RUN, job=job, envs=envs).to_json()


def test_the_training_program_may_be_a_file() -> None:
    plan = make_plan(RUN, job=make_job(2, entrypoint="/path with/train.py"))
    assert plan.nodes[0].program == ("/path with/train.py", "--lr", "1e-3")


@given(st.text())
def test_a_run_id_contains_only_safe_characters(name: str) -> None:
    run_id = new_run_id(name, "20260101-000000", "ab12")
    assert run_id.endswith("-20260101-000000-ab12")
    assert len(run_id) < 100
    assert all(char.isascii() and (char.isalnum() or char in "_.-") for char in run_id)


def test_services_run_without_the_environment_of_ranks() -> None:
    job = make_job(2, entrypoint="a.server")
    server = Service("one", ("--port", "8000"), "http://127.0.0.1:8000", "m", {"DEVICES": "0"})
    ranks, servers = make_plan(RUN, job=job), make_plan(RUN, job=replace(job, services={0: (server,)}))
    node = servers.nodes[0]
    assert node.argv == ("/usr/bin/python3", "-m", "flagscale.node", "services", str(RUN), "0", "demo-1")
    assert node.command() == node.argv
    assert node.services == (replace(server, argv=("/usr/bin/python3", "-m", "a.server", "--port", "8000")),)
    assert ranks.nodes[0].env["ORDER"] == "kept"
    assert "ORDER" not in node.env
    assert node.env["CHIP_MODE"] == "fast"


def test_a_service_may_run_a_module_of_its_own_and_know_the_addresses_of_hosts() -> None:
    words = ("--at", address_of(0), "--to", f"a=http://{address_of(0)}:1", f"http://{address_of(1)}:2")
    router = Service("one", words, f"http://{address_of(0)}:8000", entrypoint="a.router")
    job = replace(make_job(1, 1, entrypoint="a.server"), services={0: (router, Service("two", ()))})
    one, two = make_plan(RUN, job=job, master_addr="fd00::1").nodes[0].services
    assert one.argv[:3] == ("/usr/bin/python3", "-m", "a.router")
    assert one.argv[3:] == (
        *("--at", "fd00::1", "--to", "a=http://[fd00::1]:1"),
        f"http://{job.hosts[1].name}:2",
    )
    assert one.url == "http://[fd00::1]:8000"
    assert two.argv == ("/usr/bin/python3", "-m", "a.server")
