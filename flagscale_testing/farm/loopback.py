"""A cheap farm: each host is an address of the loopback interface with its own sshd.

The hosts share this machine's file system, process table and network. Dozens start within a second or two.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from flagscale_testing.farm import sshd
from flagscale_testing.farm.credentials import FarmHost
from flagscale_testing.farm.farm import Farm, is_sshd
from flagscale_testing.farm.keeper import Keeper
from flagscale_testing.ports import free_port


@dataclass(frozen=True)
class LoopbackFarm(Farm):
    """Hosts 127.0.0.2, 127.0.0.3, ... which all use the same port."""

    def inside(self, host: FarmHost, words: Sequence[str]) -> list[str]:
        return ["env", f"{sshd.TAG_MARK}={self.tag}", f"{sshd.HOST_MARK}={host.name}", *words]

    def processes(self, host: FarmHost) -> list[psutil.Process]:
        found: dict[int, psutil.Process] = {}
        for process in self.keeper.processes():
            try:
                # Parents come before their children, so a child without the mark is still found by descent.
                of_host = process.environ().get(sshd.HOST_MARK) == host.name and not is_sshd(process)
                if of_host or process.ppid() in found:
                    found[process.pid] = process
            except psutil.NoSuchProcess:  # or a zombie
                continue
        return list(found.values())


@contextmanager
def loopback_farm(directory: Path, count: int) -> Iterator[LoopbackFarm]:
    """Make a farm of `count` hosts in an empty folder; at the end, none of its processes is left."""
    assert 1 <= count <= 250
    directory = directory.resolve()
    port = free_port()
    hosts = tuple(
        FarmHost(f"node-{n}", f"127.0.0.{n + 1}", port, directory / f"node-{n}") for n in range(1, count + 1)
    )
    with Keeper() as keeper:
        farm = LoopbackFarm(directory, secrets.token_hex(4), hosts, keeper)
        farm.write_files()
        farm.start_sshd(*hosts)
        yield farm
