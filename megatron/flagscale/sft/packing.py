"""Which conversations share a sequence: packed once, and in another order in each epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flagscale.checks.packing import placements


@dataclass(frozen=True)
class Packing:
    """Sequences of whole conversations."""

    order: NDArray[np.int32]
    """The numbers of the conversations, sequence after sequence."""
    bounds: NDArray[np.int64]
    """Where each sequence begins in `order`, and where the last one ends."""

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def of_sequence(self, number: int) -> NDArray[np.int32]:
        """Return the conversations of a sequence."""
        return self.order[self.bounds[number] : self.bounds[number + 1]]


def packed(lengths: NDArray[np.int32], capacity: int) -> Packing:
    """Return sequences of at most `capacity` tokens, filled by best fit; empty conversations are left out.

    Raises:
        ValueError: a conversation is longer than `capacity`.
    """
    counts = np.bincount(lengths)
    if len(counts) > capacity + 1:
        raise ValueError(f"a conversation has {len(counts) - 1} tokens, more than {capacity}")
    # Placements come in the order of these: the longest first.
    longest_first = np.argsort(-lengths, kind="stable")[: len(lengths) - counts[0]]
    sequences: list[int] = []
    with_room: dict[int, list[int]] = {}
    made = 0
    known = {length: int(count) for length, count in enumerate(counts) if length and count}
    for placement in placements(known, capacity):
        if placement.room == capacity:
            chosen = [*range(made, made + placement.number)]
            made += placement.number
        else:
            waiting = with_room[placement.room]
            chosen = waiting[-placement.number :]
            del waiting[-placement.number :]
        sequences += chosen
        if left := placement.room - placement.length:
            with_room.setdefault(left, []).extend(chosen)
    sequence = np.array(sequences, dtype=np.int64)
    order = longest_first[np.argsort(sequence, kind="stable")].astype(np.int32)
    return Packing(order, _bounds(np.bincount(sequence, minlength=made)))


def one_each(lengths: NDArray[np.int32]) -> Packing:
    """Return sequences of one conversation each; empty conversations are left out."""
    order = np.flatnonzero(lengths).astype(np.int32)
    return Packing(order, np.arange(len(order) + 1))


def shuffled(packing: Packing, lengths: NDArray[np.int32], seed: tuple[int, int]) -> Packing:
    """Return the packing of one epoch: conversations of equal length change places, then all sequences do.

    So the number of sequences and their fill are the same in every epoch. The generator's numbers are the
    same with every version of numpy.
    """
    generator = np.random.RandomState(seed)
    own = lengths[packing.order]
    place, drawn = np.argsort(own, kind="stable"), np.lexsort((generator.random_sample(len(own)), own))
    order = np.empty_like(packing.order)
    order[place] = packing.order[drawn]
    turn = generator.permutation(len(packing))
    sizes = np.diff(packing.bounds)[turn]
    bounds = _bounds(sizes)
    source = np.repeat(packing.bounds[turn] - bounds[:-1], sizes) + np.arange(len(order))
    return Packing(order[source], bounds)


def _bounds(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(sizes)))
