"""The devices that a search may use: pools of equal hosts, and the links between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flagscale.errors import Problem, UserError
from flagscale.frozen import dataclass, field, replace
from flagscale.planner.chips import Chip, Link


@dataclass(frozen=True)
class Pool:
    """Equal hosts of one type."""

    type: str
    """As `type=` in the hostfile; empty if the hostfile has none."""
    chip: Chip
    hosts: int
    per_host: int

    @property
    def devices(self) -> int:
        return self.hosts * self.per_host


@dataclass(frozen=True)
class Route:
    """The connection between devices of two types."""

    link: Link
    through_host: bool = False
    """Whether messages pass through the memory of the hosts, because the devices cannot exchange them."""


@dataclass(frozen=True)
class Cluster:
    """All pools; a pool may stay idle."""

    pools: tuple[Pool, ...]
    routes: Mapping[frozenset[str], Route] = field(default_factory=dict)
    """By the two types. Types that are absent are connected as fast as the slower `outside` link of both."""

    def route(self, one: Pool, other: Pool) -> Route:
        """Return what connects two pools."""
        if found := self.routes.get(frozenset((one.type, other.type))):
            return found
        return Route(min(one.chip.outside, other.chip.outside, key=lambda link: link.bytes_s))

    def linked(self) -> tuple[tuple[Cluster, str], ...]:
        """Return clusters whose links are all known, each with a note if that leaves out devices.

        If the link between the hosts of a type is not known, its devices work inside one host only.
        """
        pools = [_on_one_host(pool) for pool in self.pools]
        together = [pool for pool in pools if pool.chip.outside.bytes_s]
        alone: list[Pool] = []
        for pool in pools:
            if pool not in together:
                is_linked = together and all(self.route(pool, one).link.bytes_s for one in together)
                (together if is_linked else alone).append(pool)
        is_whole = not alone or (not together and pools == [*self.pools] and len(pools) == 1)
        found = [(replace(self, pools=tuple(together)), "")] if together or not alone else []
        found += [(replace(self, pools=(pool,)), "" if is_whole else _left_out(pool)) for pool in alone]
        return tuple(found)

    def check(self) -> None:
        """Raise UserError with everything that a search cannot start with."""
        if problems := list(self._problems()):
            raise UserError(problems)

    def _problems(self) -> Iterator[Problem]:
        if not sum(pool.devices for pool in self.pools):
            yield Problem("the cluster has no devices: the hostfile needs at least one host with slots")
        types = [pool.type for pool in self.pools]
        for name in sorted({name for name in types if types.count(name) > 1}):
            yield Problem(f"the type `{name}` has {types.count(name)} pools: give each type once")
        for number, one in enumerate(self.pools):
            for other in self.pools[number + 1 :]:
                if not self.route(one, other).link.bytes_s:
                    what = f"no bandwidth is known between {one.type} and {other.type}"
                    yield Problem(what, "", "give `inter_node` of both chips, or a link between the types")


def _on_one_host(pool: Pool) -> Pool:
    """Return the part of a pool whose links are known."""
    if pool.chip.outside.bytes_s or pool.devices <= 1:
        return pool
    return replace(pool, hosts=1, per_host=min(pool.per_host, pool.chip.per_node))


def _left_out(pool: Pool) -> str:
    name = pool.type or pool.chip.name
    return (
        f"{name} was planned for one host alone, with {pool.devices} of its devices: the bandwidth between "
        "its hosts is not known (`inter_node.gbit_s_per_card`)."
    )
