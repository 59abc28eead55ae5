"""Hosts of unequal sizes as pools of equal blocks."""

from __future__ import annotations

import pytest

from flagscale.estimates.pools import divisions
from flagscale.planner.chips import Chip
from flagscale.values import Host

FAST, SLOW = Chip("fast", {}, 80e9, 3e12), Chip("slow", {}, 40e9, 1e12)


@pytest.mark.parametrize(
    ("slots", "blocks"),
    [
        ((8, 8), [(2, 8)]),
        ((8, 4), [(1, 8), (3, 4)]),
        ((8, 8, 7), [(2, 8), (3, 7), (5, 4), (23, 1)]),
        ((6, 4), [(1, 6), (2, 4), (5, 2)]),
        ((1, 3), [(1, 3), (4, 1)]),
    ],
)
def test_blocks_of_one_type(slots: tuple[int, ...], blocks: list[tuple[int, int]]) -> None:
    hosts = [Host(number, f"h{number}", count, "nvidia") for number, count in enumerate(slots)]
    found = [*divisions(hosts, [FAST] * len(hosts))]
    assert [(pool.hosts, pool.per_host) for one in found for pool in one.cluster.pools] == blocks
    for one in found:
        (pool,) = one.cluster.pools
        assert sum(host.slots for host in one.hosts) == pool.devices
        assert (pool.type, bool(one.note)) == ("", len(blocks) > 1)


def test_each_type_is_divided_by_itself() -> None:
    hosts = [Host(0, "a", 8, "F"), Host(1, "b", 4, "F"), Host(2, "c", 2, "S")]
    found = [*divisions(hosts, [FAST, FAST, SLOW])]
    assert [[(pool.type, pool.hosts, pool.per_host) for pool in one.cluster.pools] for one in found] == [
        [("F", 1, 8), ("S", 1, 2)],
        [("F", 3, 4), ("S", 1, 2)],
    ]
    assert [host.name for host in found[0].hosts] == ["a", "c"]
