"""Checks over real sockets that hosts reach each other."""

from __future__ import annotations

import json
import socket
from typing import Any

import pytest

from flagscale.node import commands, probe
from flagscale_testing.ports import free_port
from tests.node.conftest import wait_for

HERE = "127.0.0.1"


def listen_on(*ports: int, seconds: float = 20) -> dict[str, Any]:
    return commands.execute(["listen", HERE, json.dumps(ports), str(seconds)])


def reasons_for(*ports: int) -> list[str]:
    places = json.dumps([[HERE, port] for port in ports])
    reported: list[str] = commands.execute(["dial", places])["reasons"]
    return reported


def test_open_and_refused_connections_are_reported() -> None:
    port = free_port()
    reported = listen_on(port, 0)["ports"]
    assert reported[0] == port
    assert reported[1] not in (0, port)
    assert reasons_for(*reported, *reported) == [""] * 4
    assert reasons_for(free_port(), reported[0]) == ["Connection refused", ""]


def test_a_port_in_use_is_reported_and_the_other_ports_are_released() -> None:
    with socket.create_server((HERE, 0)) as taken:
        port = free_port()
        reply = listen_on(port, taken.getsockname()[1])
        assert reply["ok"] is False
        assert reply["message"].startswith("cannot listen: Address already in use")
    assert listen_on(port)["ports"] == [port]


def test_a_silent_address_is_reported_within_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "_TIMEOUT", 0.3)
    with socket.create_server((HERE, 0), backlog=0) as full:
        place = full.getsockname()
        with socket.create_connection(place):  # takes the only place in its queue
            reported = reasons_for(place[1], place[1])
    assert "no answer within 0.3 s" in reported


def test_listening_ends_after_its_time() -> None:
    (port,) = listen_on(0, seconds=2)["ports"]
    assert reasons_for(port) == [""]
    wait_for(lambda: reasons_for(port) == ["Connection refused"])
