"""Seconds of messages and collectives: a latency for each doubling of the ranks, and bytes over bandwidth.

Groups are placed as the engine numbers ranks: tp fastest, then cp, dp (for experts: etp, ep, their copies),
pp slowest.
"""

from __future__ import annotations

import math

from flagscale.errors import Problem, UserError
from flagscale.frozen import dataclass
from flagscale.planner.chips import Chip, Link
from flagscale.planner.curves import Curves
from flagscale.planner.time.constants import Constants

_MOST_ON_A_HOST = 16
"""Devices. A link that connects more of them joins hosts."""


@dataclass(frozen=True)
class Group:
    """Ranks that communicate, `inside` of them behind each of the links that join the devices of a node."""

    size: int
    inside: int


@dataclass(frozen=True)
class Network:
    """The rates of the links of one kind of chip, in bytes per second, device and direction; 0: unknown."""

    chip: str
    domain: int
    """Ranks, neighbours in their order, that the link inside a node joins."""
    inside_bytes_s: float
    outside_bytes_s: float
    inside_latency_s: float
    outside_latency_s: float
    alltoall_share: float
    curves: Curves

    def group(self, size: int, stride: int) -> Group:
        """Return the placement of `size` ranks that are `stride` apart."""
        return Group(size, max(1, min(size, self.domain // stride)))

    def gather(self, nbytes: float, group: Group, kind: str = "all_gather") -> float:
        """Return the seconds of an all-gather or a reduce-scatter of `nbytes` in all."""
        if group.size < 2:
            return 0.0
        return self._measured(kind, nbytes, group) or self._around(nbytes, group)

    def reduce(self, nbytes: float, group: Group) -> float:
        """Return the seconds of an all-reduce."""
        if group.size < 2:
            return 0.0
        return self._measured("all_reduce", nbytes, group) or self._around(2 * nbytes, group)

    def exchange(self, nbytes: float, group: Group) -> float:
        """Return the seconds of an all-to-all: each rank has `nbytes`, an equal share for each rank."""
        if group.size < 2:
            return 0.0
        if known := self._measured("all_to_all", nbytes, group):
            return known
        inside = nbytes * (group.inside - 1) / group.size / self._inside(group.inside > 1)
        outside = nbytes * (group.size - group.inside) / group.size / self._outside(group)
        return max(inside, outside) / self.alltoall_share + self._latency(group)

    def send(self, nbytes: float, is_inside: bool) -> float:
        """Return the seconds of a message between two ranks."""
        if is_inside:
            known = self.curves.collective_s("send", 2, nbytes)
            return known or nbytes / self._inside(True) + self.inside_latency_s
        return nbytes / self._outside(Group(2, 1)) + self.outside_latency_s

    def _measured(self, kind: str, nbytes: float, group: Group) -> float | None:
        """Return the seconds by what was measured on one host, None if nothing was or the group has more."""
        return self.curves.collective_s(kind, group.size, nbytes) if group.inside == group.size else None

    def _around(self, nbytes: float, group: Group) -> float:
        """Return the seconds in which all but a rank's own part of some bytes passes through a ring."""
        return nbytes * (1 - 1 / group.size) / self._ring(group) + self._latency(group)

    def _ring(self, group: Group) -> float:
        """Return the bytes per second through each device of a ring, all links of a node side by side."""
        if group.inside == group.size:
            return self._inside(True)
        across = self._outside(group) * group.inside
        return min(self._inside(True), across) if group.inside > 1 else across

    def _latency(self, group: Group) -> float:
        one = self.inside_latency_s if group.inside == group.size else self.outside_latency_s
        return one * math.log2(group.size)

    def _inside(self, is_used: bool) -> float:
        if is_used and not self.inside_bytes_s:
            raise UserError([_unknown(self.chip, "inside a node", "intra_node.gb_s")])
        return self.inside_bytes_s or math.inf

    def _outside(self, group: Group) -> float:
        if group.size > group.inside and not self.outside_bytes_s:
            raise UserError([_unknown(self.chip, "between nodes", "inter_node.gbit_s_per_card")])
        return self.outside_bytes_s or math.inf


def network(chip: Chip, per_node: int, constants: Constants) -> Network:
    """Return what the links of a chip reach on hosts with `per_node` ranks."""
    return Network(
        chip=chip.name,
        domain=chip.per_node if chip.per_node > _MOST_ON_A_HOST else min(chip.per_node, per_node),
        inside_bytes_s=chip.inside.bytes_s
        * (constants.bus_share if chip.inside.is_bus else constants.link_share),
        outside_bytes_s=chip.outside.bytes_s * constants.network_share,
        inside_latency_s=_latency(chip.inside, constants),
        outside_latency_s=_latency(chip.outside, constants),
        alltoall_share=constants.alltoall_share,
        curves=chip.curves,
    )


def _latency(link: Link, constants: Constants) -> float:
    return link.latency_s or constants.latency_s


def _unknown(chip: str, where: str, key: str) -> Problem:
    what = f"the bandwidth of the links of chip `{chip}` {where} is not known"
    return Problem(what, hint=f"set `{key}` in the file of experiment.chips")
