"""Best-fit packing of conversations into sequences, computed on the number of conversations of each length.

Both sides use it: a check before the launch only counts the sequences, the training also fills them
(megatron/flagscale/sft/packing.py).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """`number` conversations of `length` tokens go into as many sequences, each with `room` tokens left."""

    length: int
    room: int
    number: int


def placements(counts: Mapping[int, int], capacity: int) -> Iterator[Placement]:
    """Yield the placements of best fit, the longest conversations first; a room of `capacity` is a new one.

    Each conversation goes into the fullest sequence that still has room for it. `counts` maps lengths from
    1 to `capacity` to the number of conversations that have it. Conversations of one length are placed
    together, so the time depends on the number of different lengths rather than on that of conversations.
    """
    rooms: list[int] = []
    sequences: dict[int, int] = {}
    for length in sorted(counts, reverse=True):
        waiting = counts[length]
        while waiting:
            at = bisect_left(rooms, length)
            if at < len(rooms):
                room = rooms[at]
                number = min(waiting, sequences[room])
                sequences[room] -= number
                if not sequences[room]:
                    del rooms[at]
            else:
                room, number = capacity, max(1, waiting // (capacity // length))
            yield Placement(length, room, number)
            waiting -= number
            if left := room - length:
                if not sequences.get(left):
                    insort(rooms, left)
                sequences[left] = sequences.get(left, 0) + number


def sequences_of(counts: Mapping[int, int], capacity: int) -> int:
    """Return how many sequences best fit needs."""
    return sum(one.number for one in placements(counts, capacity) if one.room == capacity)
