"""The one report of many hosts."""

from __future__ import annotations

from flagscale.remote.report import grouped, host_error
from flagscale.values import Host


def hosts(*names: str) -> list[Host]:
    return [Host(rank, name, 1, "cpu") for rank, name in enumerate(names)]


def test_hosts_that_say_the_same_share_a_line() -> None:
    many = hosts(*(f"node{number:03}" for number in range(1, 998)))
    reports = [(host, "no space left" if host.rank != 400 else "no such user") for host in many]
    assert str(host_error("failed:", reports)).splitlines() == [
        "failed:",
        "- node[001-400,402-997]: no space left",
        "- node401: no such user",
    ]


def test_a_host_alone_keeps_its_message() -> None:
    (host,) = hosts("10.0.0.1")
    text = "10.0.0.1 port 22: Connection refused; see /run/host_0_10.0.0.1.output"
    assert list(grouped([(host, text)])) == [("10.0.0.1", text)]


def test_messages_may_differ_in_the_name_of_their_host() -> None:
    reports = [
        (host, f"no key is accepted; try `ssh {host.name}`; see /run/{host.label}.output, not {host.name}0")
        for host in hosts("gpu-1", "gpu-2")
    ]
    assert [names for names, _ in grouped(reports)] == ["gpu-1", "gpu-2"]  # gpu-10 and gpu-20 are others
    reports = [(host, text.rpartition(", not")[0]) for host, text in reports]
    shared = "no key is accepted; try `ssh HOST`; see /run/host_RANK_HOST.output"
    assert list(grouped(reports)) == [("gpu-[1-2]", shared)]


def test_addresses_in_which_messages_differ_are_listed() -> None:
    reports = [
        (host, f"10.0.0.{host.rank + 1} port 22: refused by 10.9.9.9") for host in hosts("a", "b", "c")
    ]
    assert list(grouped(reports)) == [("a,b,c", "10.0.0.[1-3] port 22: refused by 10.9.9.9")]


def test_messages_that_differ_in_other_numbers_stay_apart() -> None:
    reports = [(host, f"its clock is {host.rank} s off") for host in hosts("a", "b")]
    assert list(grouped(reports)) == [("a", "its clock is 0 s off"), ("b", "its clock is 1 s off")]
