"""Ports and addresses of this host, as reported by the kernel."""

from __future__ import annotations

import pytest

from flagscale.node import network
from flagscale.node.network import free_port, interface_of, is_free, listen, own_address

HERE, ELSEWHERE = "127.0.0.1", "192.0.2.1"


def test_a_preferred_port_is_used_if_it_is_free() -> None:
    port = free_port(HERE)
    assert port in network._FREE_PORTS
    assert free_port(HERE, port) == port
    with listen(HERE, port):
        assert not is_free(HERE, port)
        other = free_port(HERE, port)
        assert other != port
        assert free_port(HERE, port, (other,)) not in (port, other)
    assert is_free(HERE, port)
    assert free_port(HERE, port, (port,)) != port


def test_a_port_in_use_on_one_address_is_free_on_another() -> None:
    port = free_port(HERE)
    with listen(HERE, port):
        assert free_port("127.0.0.2", port) == port


def test_an_address_of_another_host_is_an_error() -> None:
    with pytest.raises(OSError, match="assign requested address"):
        free_port(ELSEWHERE, 29500)


def test_having_no_free_port_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port(HERE)
    monkeypatch.setattr(network, "_FREE_PORTS", [port])
    with listen(HERE, port), pytest.raises(OSError, match="no port is free"):
        free_port(HERE)


def test_the_own_address_towards_a_host_and_its_interface() -> None:
    assert own_address(HERE) == HERE
    assert interface_of(own_address("127.0.0.9")) == "lo"
    assert interface_of(ELSEWHERE) is None
