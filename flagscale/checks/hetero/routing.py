"""Compute which rank sends which part of an activation to which, between stages that cut it differently.

A micro-step's activation is `[sequence, batch, hidden]`. Data parallel cuts the batch; context parallel cuts
the sequence in Megatron's zigzag (rank r of n holds the chunks r and 2n - 1 - r); sequence parallel cuts a
rank's sequence once more, in equal parts. Positions and samples are counted in units, fractions of the whole,
so that the answer does not depend on lengths. Each message is what the parts of two ranks have in common,
in either direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from math import lcm

from flagscale.checks.hetero.layout import HeteroLayout, Stage


@dataclass(frozen=True)
class Side:
    """How one stage cuts: ranks are numbered tp fastest, then cp, then dp.

    `sp`: tensor parallel ranks cut the sequence; otherwise they all hold the same.
    """

    tp: int = 1
    cp: int = 1
    dp: int = 1
    sp: bool = False

    @property
    def size(self) -> int:
        return self.tp * self.cp * self.dp

    @property
    def parts(self) -> int:
        """The number of equal runs in the finest cut of the sequence."""
        chunks = 2 * self.cp if self.cp > 1 else 1
        return chunks * self.tp if self.sp else chunks

    @property
    def held(self) -> int:
        """The number of ranks that share one copy of the sequence, each holding one part."""
        return self.cp * self.tp if self.sp else self.cp


@dataclass(frozen=True)
class Block:
    """A part of a rank's own activation, in units: `sequence` and `batch` are half-open ranges there."""

    sequence: tuple[int, int]
    batch: tuple[int, int]


@dataclass(frozen=True)
class Message:
    """The exchange of two ranks: the other's index in its stage, and my blocks in the order they are sent."""

    peer: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Exchange:
    """Every message between one rank and the neighbouring stage.

    `sequence` and `batch`: how many units this rank's own activation has in each dimension.
    """

    sequence: int
    batch: int
    messages: tuple[Message, ...]


def side_of(layout: HeteroLayout, stage: Stage, sequence_parallel: bool) -> Side:
    """Return how a stage cuts activations; `sequence_parallel`: the default of meshes."""
    mesh = layout.meshes[stage.mesh]
    is_cut = sequence_parallel if mesh.sp is None else mesh.sp
    return Side(stage.tp, stage.cp, stage.dp, is_cut and stage.tp > 1)


@cache
def sends(mine: Side, other: Side, index: int) -> Exchange:
    """Return what the rank `index` of a stage sends to a neighbouring stage."""
    return _exchange(mine, other, index, lambda peer: _is_pair(mine, index, peer))


@cache
def receives(mine: Side, other: Side, index: int) -> Exchange:
    """Return what the rank `index` of a stage receives from a neighbouring stage: each unit exactly once."""
    return _exchange(mine, other, index, lambda peer: _is_pair(other, peer, index))


def receivers(mine: Side, other: Side, index: int) -> list[int]:
    """Return the indices of the ranks in the next stage that the rank `index` sends to."""
    return [message.peer for message in sends(mine, other, index).messages]


def _is_pair(source: Side, sender: int, receiver: int) -> bool:
    """Return whether a sender serves a receiver: source ranks that hold the same data take turns."""
    return source.sp or sender % source.tp == receiver % source.tp


def _exchange(mine: Side, other: Side, index: int, is_partner: Callable[[int], bool]) -> Exchange:
    units = lcm(mine.parts, other.parts)
    samples = lcm(mine.dp, other.dp)
    messages = []
    for peer in range(other.size):
        if is_partner(peer) and (blocks := tuple(_overlap(mine, index, other, peer, units, samples))):
            messages.append(Message(peer, blocks))
    return Exchange(units // mine.held, samples // mine.dp, tuple(messages))


def _overlap(mine: Side, index: int, other: Side, peer: int, units: int, samples: int) -> Iterator[Block]:
    """Yield the blocks, in my own units, that the parts of both ranks have in common, in global order."""
    my_first, my_last = _batch(mine, index, samples)
    its_first, its_last = _batch(other, peer, samples)
    first, last = max(my_first, its_first), min(my_last, its_last)
    if first >= last:
        return
    batch = (first - my_first, last - my_first)
    theirs = _runs(other, peer, units)
    found = [
        (max(start, its_start), min(stop, its_stop), local - start)
        for start, stop, local in _runs(mine, index, units)
        for its_start, its_stop, _ in theirs
    ]
    for start, stop, shift in sorted(found):
        if start < stop:
            yield Block((start + shift, stop + shift), batch)


def _batch(side: Side, index: int, samples: int) -> tuple[int, int]:
    each, dp = samples // side.dp, index // (side.tp * side.cp)
    return dp * each, (dp + 1) * each


def _runs(side: Side, index: int, units: int) -> list[tuple[int, int, int]]:
    """Return the runs of the sequence that a rank holds: (start, stop, where it begins in the rank's own)."""
    tp, cp = index % side.tp, index // side.tp % side.cp
    if side.cp == 1:
        runs = [(0, units, 0)]
    else:
        chunk = units // (2 * side.cp)
        runs = [(cp * chunk, (cp + 1) * chunk, 0)]
        last = 2 * side.cp - 1 - cp
        runs.append((last * chunk, (last + 1) * chunk, chunk))
    if not side.sp:
        return runs
    each = units // side.cp // side.tp
    first, end = tp * each, (tp + 1) * each
    cut = []
    for start, stop, local in runs:
        begin, finish = max(first, local), min(end, local + stop - start)
        if begin < finish:
            cut.append((start + begin - local, start + finish - local, begin - first))
    return cut
