"""Names that mean the same host are found by what the network says."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from flagscale.remote import places
from flagscale.remote.places import Place, places_of, repeated
from flagscale.values import Host

NETWORK = {"w1": "10.0.0.1", "w1.example.org": "10.0.0.1", "w2": "10.0.0.2", "lo": "127.0.0.1"}
CONFIGURED: Mapping[str, tuple[str, int]] = {
    "box-a": ("w2", 2201),
    "box-b": ("w2", 2202),
    "again": ("w2", 22),
    "docker": ("docker", 2201),
}


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        places, "configured_place", lambda name, port: CONFIGURED.get(name, (name, port or 22))
    )
    monkeypatch.setattr(places, "_resolved", lambda name: {**NETWORK, "docker": "10.0.0.1"}.get(name, name))
    monkeypatch.setattr(places, "own_address", lambda other: "10.0.0.9")


def hosts(*names: str) -> tuple[Host, ...]:
    return tuple(Host(rank, name, 1, "cpu") for rank, name in enumerate(names))


def found(*names: str, ssh_port: int | None = None) -> list[tuple[str, str]]:
    return [(host.name, text) for host, text in repeated(places_of(hosts(*names), ssh_port))]


def test_two_names_of_one_address_are_one_host() -> None:
    text = "it is the same host as w1 (10.0.0.1 port 22); remove one of them from the hostfile"
    assert found("w1", "w2", "w1.example.org") == [("w1.example.org", text)]
    assert found("w1", "10.0.0.1") == [("10.0.0.1", text)]


def test_two_names_of_this_machine_are_one_host() -> None:
    text = "it is the same host as localhost (this machine); remove one of them from the hostfile"
    assert found("localhost", "w1", os.uname().nodename) == [(os.uname().nodename, text)]
    assert found("localhost", "lo") == [("lo", text)]
    assert found("localhost", "lo", ssh_port=2201) == []  # a container on this machine, for example


def test_hosts_that_the_ssh_configuration_tells_apart_are_several() -> None:
    assert found("w2", "box-a", "box-b") == []
    assert found("w1", "docker") == []
    assert found("w2", "again") == []  # as the user has written it


def test_addresses_are_those_that_other_hosts_see() -> None:
    by_host = places_of(hosts("localhost", "w1", "box-a", "unknown"), None)
    assert [place.address for place in by_host.values()] == ["10.0.0.9", "10.0.0.1", "10.0.0.2", "unknown"]
    assert places_of(hosts("localhost"), None) == {hosts("localhost")[0]: Place("127.0.0.1", "this machine")}
