"""Routing between stages that cut activations differently: every element arrives once, in its place."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from flagscale.checks.hetero.routing import Exchange, Side, receives, sends

SIDES = [
    Side(tp, cp, dp, sp)
    for tp, cp, dp, sp in product((1, 2, 4), (1, 2, 3), (1, 2), (False, True))
    if not (sp and tp == 1)
]
LENGTH, SAMPLES = 48, 2


def own(side: Side, index: int) -> list[list[tuple[int, int]]]:
    """Return what a rank holds by Megatron's own rules: rows of (position, sample)."""
    tp, cp, dp = index % side.tp, index // side.tp % side.cp, index // side.tp // side.cp
    positions = list(range(LENGTH))
    if side.cp > 1:
        chunk = LENGTH // (2 * side.cp)
        last = 2 * side.cp - 1 - cp
        positions = positions[cp * chunk : (cp + 1) * chunk] + positions[last * chunk : (last + 1) * chunk]
    if side.sp:
        each = len(positions) // side.tp
        positions = positions[tp * each : (tp + 1) * each]
    samples = range(dp * SAMPLES // side.dp, (dp + 1) * SAMPLES // side.dp)
    return [[(position, sample) for sample in samples] for position in positions]


def cells(rows: list[list[Any]], exchange: Exchange, peer: int) -> list[tuple[int, int]]:
    """Return the cells (row, column) of a rank's own activation that one message holds, in order."""
    long, wide = len(rows) // exchange.sequence, len(rows[0]) // exchange.batch
    (message,) = [message for message in exchange.messages if message.peer == peer]
    return [
        (row, column)
        for block in message.blocks
        for row in range(block.sequence[0] * long, block.sequence[1] * long)
        for column in range(block.batch[0] * wide, block.batch[1] * wide)
    ]


@pytest.mark.parametrize("source", SIDES, ids=str)
def test_every_receiver_gets_what_it_would_hold(source: Side) -> None:
    for target in SIDES:
        for receiver in range(target.size):
            wanted = own(target, receiver)
            got: dict[tuple[int, int], tuple[int, int]] = {}
            exchange = receives(target, source, receiver)
            for message in exchange.messages:
                held = own(source, message.peer)
                sent = [
                    held[row][column]
                    for row, column in cells(held, sends(source, target, message.peer), receiver)
                ]
                places = cells(wanted, exchange, message.peer)
                assert not set(places) & got.keys()
                got |= dict(zip(places, sent, strict=True))
            assert got == {
                (row, column): cell for row, line in enumerate(wanted) for column, cell in enumerate(line)
            }


def test_copies_share_the_work_of_sending() -> None:
    wide, narrow = Side(tp=4), Side(tp=2)
    assert [[one.peer for one in sends(wide, narrow, rank).messages] for rank in range(4)] == [
        [0],
        [1],
        [],
        [],
    ]
    assert [[one.peer for one in sends(narrow, wide, rank).messages] for rank in range(2)] == [[0, 2], [1, 3]]
    copies = Side(dp=2)
    assert [[one.peer for one in sends(narrow, copies, rank).messages] for rank in range(2)] == [[0], [1]]
