"""Best-fit packing: every conversation once, sequences almost full, epochs in an order of their own."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from flagscale.checks.packing import Placement, placements, sequences_of
from megatron.flagscale.sft.packing import Packing, one_each, packed, shuffled


def drawn(count: int, typical: float, capacity: int) -> NDArray[np.int32]:
    """Return lengths as chat data has them: log-normal, and none above the capacity."""
    lengths = np.random.RandomState(1).lognormal(np.log(typical), 0.8, count)
    return np.clip(lengths, 8, capacity).astype(np.int32)


def fills(packing: Packing, lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    return np.add.reduceat(lengths[packing.order], packing.bounds[:-1])


def test_each_conversation_goes_into_the_fullest_sequence_with_room() -> None:
    found = [*placements({7: 1, 6: 1, 3: 2, 1: 1}, 10)]
    assert found == [
        Placement(7, 10, 1),
        Placement(6, 10, 1),
        Placement(3, 3, 1),  # beside 7, whose sequence is fuller
        Placement(3, 4, 1),
        Placement(1, 1, 1),
    ]


def by_hand(lengths: list[int], capacity: int) -> int:
    """Return the number of sequences of best fit, conversation after conversation."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [room for room in rooms if room >= length]
        if fitting:
            rooms.remove(min(fitting))
        rooms.append((min(fitting) if fitting else capacity) - length)
    return len(rooms)


@pytest.mark.parametrize("seed", range(5))
def test_as_many_sequences_as_one_conversation_after_the_other(seed: int) -> None:
    lengths = np.random.RandomState(seed).randint(1, 65, 300)
    counts = {length: int(count) for length, count in enumerate(np.bincount(lengths)) if count}
    assert sequences_of(counts, 64) == by_hand(lengths.tolist(), 64)
    assert len(packed(lengths.astype(np.int32), 64)) == by_hand(lengths.tolist(), 64)


@pytest.mark.parametrize(("typical", "capacity"), [(180, 2048), (400, 4096), (900, 8192)])
def test_sequences_are_full_and_have_every_conversation_once(typical: float, capacity: int) -> None:
    lengths = drawn(20_000, typical, capacity)
    packing = packed(lengths, capacity)
    assert sorted(packing.order) == [*range(len(lengths))]
    found = fills(packing, lengths)
    assert found.max() <= capacity
    assert found.sum() / (len(packing) * capacity) >= 0.99


def test_epochs_have_the_same_fill_and_another_order() -> None:
    lengths = drawn(3_000, 180, 1024)
    packing = packed(lengths, 1024)
    first, again, second = (shuffled(packing, lengths, (42, epoch)) for epoch in (0, 0, 1))
    assert np.array_equal(first.order, again.order)
    assert np.array_equal(first.bounds, again.bounds)
    for epoch in (first, second):
        assert sorted(epoch.order) == [*range(len(lengths))]
        assert sorted(fills(epoch, lengths)) == sorted(fills(packing, lengths))
    partners = [
        {frozenset(epoch.of_sequence(number).tolist()) for number in range(len(epoch))}
        for epoch in (first, second)
    ]
    assert len(partners[0] & partners[1]) < len(packing) / 2
    assert not np.array_equal(first.order, second.order)


def test_one_conversation_per_sequence() -> None:
    lengths = np.array([3, 0, 5], dtype=np.int32)
    packing = one_each(lengths)
    assert [packing.of_sequence(number).tolist() for number in range(len(packing))] == [[0], [2]]
    assert packed(lengths, 8).order.tolist() == [2, 0]
    with pytest.raises(ValueError, match="5 tokens, more than 4"):
        packed(lengths, 4)
