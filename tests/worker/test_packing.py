"""Groups of samples that fit into a sequence, with little padding."""

from __future__ import annotations

import random

from energon_flagscale.packing import packs_of


def test_every_sample_is_in_one_pack_that_fits() -> None:
    chosen = random.Random(0)
    for _ in range(50):
        lengths = [chosen.randint(1, 100) for _ in range(chosen.randint(0, 60))]
        packs = packs_of(lengths, 100)
        assert sorted(place for pack in packs for place in pack) == [*range(len(lengths))]
        assert all(sum(lengths[place] for place in pack) <= 100 for pack in packs)


def test_gaps_are_filled_by_what_fits_best() -> None:
    assert packs_of([60, 30, 50, 40, 20], 100) == [[0, 3], [1, 2, 4]]
    assert packs_of([100, 100], 100) == [[0], [1]]
    assert packs_of([], 100) == []


def test_little_is_left_empty() -> None:
    chosen = random.Random(1)
    lengths = [chosen.randint(50, 900) for _ in range(1000)]
    packs = packs_of(lengths, 4096)
    assert sum(lengths) / (4096 * len(packs)) > 0.98
