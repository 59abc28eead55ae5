"""Which samples share a sequence, so that little of it is padding."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence


def packs_of(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return groups of places in `lengths`, the sum of each at most `capacity`.

    The longest are placed first, each where the least room remains ("best fit decreasing"). No length may
    exceed `capacity`. Groups are in the order of their first member, and members in order.
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what remains of each pack, and its number, sorted
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        fitting = bisect_left(room, (lengths[place], -1))
        if fitting < len(room):
            left, number = room.pop(fitting)
        else:
            left, number = capacity, len(packs)
            packs.append([])
        packs[number].append(place)
        insort(room, (left - lengths[place], number))
    return sorted(sorted(pack) for pack in packs)
