"""Place instances of models on hosts and on their devices: arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flagscale.formats import count
from flagscale.values import Host


@dataclass(frozen=True)
class Size:
    """The devices that one instance of a model needs: tensor x pipeline parallel, times data parallel."""

    tensor_pipeline: int
    data: int = 1

    @property
    def devices(self) -> int:
        return self.tensor_pipeline * self.data


@dataclass(frozen=True)
class Part:
    """The share of an instance that one host runs: `devices` of its slots from `first` on."""

    host: Host
    first: int
    devices: int


def place_instances(sizes: Sequence[Size], hosts: Sequence[Host]) -> list[tuple[Part, ...]]:
    """Return the parts of each instance, in order: on one host if one has room, else equally on several.

    Raises:
        ValueError: if an instance does not fit; the message says how much it needs.
    """
    used = {host.rank: 0 for host in hosts}
    placed = []
    for size in sizes:
        parts = _on_one(size, hosts, used) or _on_several(size, hosts, used)
        if not parts:
            left = ", ".join(f"{host.name} {host.slots - used[host.rank]}" for host in hosts)
            raise ValueError(f"needs {count(size.devices, 'device')}; free: {left}")
        for part in parts:
            used[part.host.rank] += part.devices
        placed.append(parts)
    return placed


def _on_one(size: Size, hosts: Sequence[Host], used: dict[int, int]) -> tuple[Part, ...]:
    for host in hosts:
        if host.slots - used[host.rank] >= size.devices:
            return (Part(host, used[host.rank], size.devices),)
    return ()


def _on_several(size: Size, hosts: Sequence[Host], used: dict[int, int]) -> tuple[Part, ...]:
    """Distribute an instance over the fewest hosts that each provide the same number of devices.

    vLLM divides the processes of tensor and pipeline parallelism into equal blocks per host, or gives each
    host whole data parallel ranks.
    """
    for parts in range(2, len(hosts) + 1):
        share, rest = divmod(size.devices, parts)
        is_whole = share % size.tensor_pipeline == 0 or size.data == 1
        room = [host for host in hosts if host.slots - used[host.rank] >= share]
        if not rest and is_whole and len(room) >= parts:
            return tuple(Part(host, used[host.rank], share) for host in room[:parts])
    return ()
