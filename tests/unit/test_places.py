"""Names that mean the same host are found by what the network says."""

from __future__ import annotations

import os
from collections.abc import Mapping

import pytest

from flagscale.remote import places
from flagscale.remote.places import Place, places_of, repeated
from flagscale.values import Host

NETWORK = {"w1": "10.0.0.1", "w1.example.org": "10.0.0.1", "w2": "10.0.0.2", "lo": "127.0.0.1"}
CONFIGURED: Mapping[str, tuple[str, int, str]] = {
    "box-a": ("w2", 2201, ""),
    "box-b": ("w2", 2202, ""),
    "again": ("w2", 22, ""),
    "behind-a": ("w2", 22, "a"),
    "behind-b": ("w2", 22, "b"),
    "behind-b2": ("w2", 22, "b"),
    "docker": ("docker", 2201, ""),
}


@pytest.fixture(autouse=True)
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        places, "configured_place", lambda name, port: CONFIGURED.get(name, (name, port or 22, ""))
    )
    monkeypatch.setattr(places, "resolved", lambda name: {**NETWORK, "docker": "10.0.0.1"}.get(name, name))
    monkeypatch.setattr(places, "own_address", lambda other: "10.0.0.9")


def hosts(*names: str) -> tuple[Host, ...]:
    return tuple(Host(rank, name, 1, "cpu") for rank, name in enumerate(names))


def found(*names: str, ssh_port: int | None = None) -> list[tuple[str, str]]:
    return [(host.name, text) for host, text, certain in _repeated(names, ssh_port) if certain]


def suspected(*names: str) -> list[tuple[str, str]]:
    return [(host.name, text) for host, text, certain in _repeated(names) if not certain]


def _repeated(names: tuple[str, ...], ssh_port: int | None = None) -> list[tuple[Host, str, bool]]:
    return list(repeated(places_of(hosts(*names), ssh_port)))


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
    for names in (("w2", "box-a", "box-b"), ("w1", "docker"), ("w2", "behind-a", "behind-b")):
        assert found(*names) == suspected(*names) == []


def test_hosts_that_the_ssh_configuration_does_not_tell_apart_are_suspected() -> None:
    assert found("w2", "again", "behind-b", "behind-b2") == []  # as the user has written it
    text = "it is the same host as {} in ~/.ssh/config; correct it, or remove one of them from the hostfile"
    assert suspected("w2", "again", "behind-b", "behind-b2") == [
        ("again", text.format("w2 (10.0.0.2 port 22)")),
        ("behind-b2", text.format("behind-b (10.0.0.2 port 22 through b)")),
    ]


def test_addresses_are_those_that_other_hosts_see() -> None:
    by_host = places_of(hosts("localhost", "w1", "box-a", "unknown"), None)
    assert [place.address for place in by_host.values()] == ["10.0.0.9", "10.0.0.1", "10.0.0.2", "unknown"]
    assert places_of(hosts("localhost"), None) == {hosts("localhost")[0]: Place("127.0.0.1", "this machine")}
