"""The hosts of a configuration as the cluster of a search, which takes equal hosts of each type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import gcd

from flagscale.frozen import dataclass, replace
from flagscale.planner.chips import Chip
from flagscale.planner.search.cluster import Cluster, Pool
from flagscale.values import Host


@dataclass(frozen=True)
class Division:
    """A way to see hosts as pools of equal ones."""

    cluster: Cluster
    hosts: tuple[Host, ...]
    """With the slots that the pools have, in the order of the hostfile."""
    note: str = ""
    """How hosts of unequal sizes are used."""


def divisions(hosts: Sequence[Host], chips: Sequence[Chip]) -> Iterator[Division]:
    """Yield all ways; there are several if hosts of a type have unequal numbers of slots.

    They are used as blocks of equal size, within which a search places tensor parallelism: 8 and 4 slots as
    three blocks of 4, or as one of 8 with the smaller host idle.
    """
    types = {host.platform: chip for host, chip in zip(hosts, chips, strict=True)}
    each = [_block_sizes([host.slots for host in hosts if host.platform == name]) for name in types]
    for sizes in product(*each):
        size_of = dict(zip(types, sizes, strict=True))
        cut = [replace(host, slots=host.slots - host.slots % size_of[host.platform]) for host in hosts]
        blocks = {
            name: sum(host.slots for host in cut if host.platform == name) // size
            for name, size in size_of.items()
        }
        pools = (
            Pool(name if len(types) > 1 else "", chip, blocks[name], size_of[name])
            for name, chip in types.items()
        )
        uneven = [name for name, choices in zip(types, each, strict=True) if len(choices) > 1]
        note = ", ".join(f"{size_of[name]} of {types[name].name}" for name in uneven)
        yield Division(
            Cluster(tuple(pools)),
            tuple(host for host in cut if host.slots),
            f"Hosts of unequal sizes are used as blocks of {note}." if uneven else "",
        )


def _block_sizes(slots: Sequence[int]) -> list[int]:
    """Return sizes of blocks worth trying: those of the hosts, and those into which most of them divide."""
    if len({*slots}) == 1:
        return [slots[0]]
    power = 1 << (min(slots).bit_length() - 1)
    sizes = sorted({*slots, gcd(*slots), power}, reverse=True)
    taken: dict[tuple[int, ...], int] = {}
    for size in sizes:  # of two sizes that use the same slots, the larger one leaves more choice
        taken.setdefault(tuple(count - count % size for count in slots), size)
    return [*taken.values()]
