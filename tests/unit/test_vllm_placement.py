"""Instances on hosts: no device is assigned twice, and instances that do not fit are reported."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagscale.engines.vllm.placement import Size, place_instances
from flagscale.values import Host


def hosts(*slots: int) -> list[Host]:
    return [Host(rank, f"h{rank}", count, "nvidia") for rank, count in enumerate(slots)]


def placed(sizes: list[Size], *slots: int) -> list[list[tuple[int, int, int]]]:
    return [
        [(part.host.rank, part.first, part.devices) for part in parts]
        for parts in place_instances(sizes, hosts(*slots))
    ]


def test_instances_fill_one_host_after_the_other() -> None:
    assert placed([Size(2), Size(2), Size(4)], 4, 4) == [[(0, 0, 2)], [(0, 2, 2)], [(1, 0, 4)]]


def test_an_instance_that_fits_on_no_host_is_split_into_equal_parts() -> None:
    assert placed([Size(8)], 4, 4) == [[(0, 0, 4), (1, 0, 4)]]
    assert placed([Size(6)], 4, 4) == [[(0, 0, 3), (1, 0, 3)]]
    assert placed([Size(1), Size(6)], 4, 3, 3) == [[(0, 0, 1)], [(0, 1, 3), (1, 0, 3)]]


def test_data_parallel_ranks_are_not_split() -> None:
    assert placed([Size(2, data=4)], 4, 4) == [[(0, 0, 4), (1, 0, 4)]]
    with pytest.raises(ValueError, match="needs 9 devices; free: h0 5, h1 5"):
        placed([Size(3, data=3)], 5, 5)


def test_no_room() -> None:
    with pytest.raises(ValueError, match="needs 2 devices; free: h0 1"):
        placed([Size(3), Size(2)], 4)


@given(
    st.lists(st.builds(Size, st.integers(1, 4), st.integers(1, 3)), max_size=5),
    st.lists(st.integers(1, 8), min_size=1, max_size=4),
)
def test_no_device_is_given_twice(sizes: list[Size], slots: list[int]) -> None:
    try:
        found = place_instances(sizes, hosts(*slots))
    except ValueError:
        return
    used = [
        (part.host.rank, device)
        for parts in found
        for part in parts
        for device in range(part.first, part.first + part.devices)
    ]
    assert len(used) == len(set(used)) == sum(size.devices for size in sizes)
    assert all(device < slots[rank] for rank, device in used)
