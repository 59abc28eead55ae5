"""A farm of hosts that can lose their network or power: each is a set of namespaces on one switch.

A host has its own network, process table, host name, `/etc/hosts` (with the names of all hosts), mounts and
sshd on port 22; it shares the machine's file system, except for the private folders.
"""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from flagscale_testing.farm.credentials import FarmHost
from flagscale_testing.farm.farm import Farm, alive, is_sshd, wait_until
from flagscale_testing.farm.keeper import Keeper
from flagscale_testing.farm.switch import Switch, free_subnet, switch_on

_SSH_PORT = 22
# An init only has to ignore SIGCHLD: the kernel then reaps the orphans that it adopts.
_INIT = ["env", "--ignore-signal=CHLD", "sleep", "infinity"]
UNSHARE = ["unshare", "--net", "--pid", "--mount", "--uts", "--fork", "--mount-proc", "--kill-child", "--"]


@dataclass(frozen=True)
class NamespaceFarm(Farm):
    """Hosts 1, 2, ... of a private subnet, in which this machine (the launcher) has `switch.launcher`.

    Attributes:
        private: folders of which every host has its own copy.
    """

    switch: Switch
    private: tuple[Path, ...]
    _init: dict[FarmHost, psutil.Process] = field(default_factory=dict, init=False, repr=False)

    def backing(self, host: FarmHost, path: Path) -> Path:
        """Return where this machine stores a path of a host's private folder; it survives power-offs."""
        assert any(path.is_relative_to(folder) for folder in self.private), f"{path} is not private"
        return host.directory / "private" / path.relative_to("/")

    def cut(self, host: FarmHost) -> None:
        """Make the network drop all packets from and to a host, which itself goes on."""
        self.switch.set_link(host, "down")

    def restore(self, host: FarmHost) -> None:
        """Undo `cut`."""
        self.switch.set_link(host, "up")

    def power_off(self, host: FarmHost) -> None:
        """Kill a host: its peers are not notified, and none of its processes is left."""
        self.switch.unplug(host)  # first, or the closing sockets would still notify their peers
        self._sshd.pop(host, None)
        init = self._init.pop(host)
        table = _process_table(init.pid)
        init.kill()
        wait_until(lambda: not _living_in(table), f"the end of {host.name}")

    def power_on(self, host: FarmHost) -> None:
        """Boot a host that is off: new namespaces and sshd, but the old contents of its private folders."""
        started = self.keeper.start([*UNSHARE, *_INIT], host.log)
        wait_until(lambda: [child.name() for child in started.children()] == ["sleep"], host.name)
        self._init[host] = started.children()[0]
        self.switch.plug_in(host, self._init[host].pid)
        self._check(host, ["hostname", host.name])
        self._check(host, ["mount", "--bind", str(self._names), "/etc/hosts"])
        for folder in self.private:
            backing = self.backing(host, folder)
            backing.mkdir(parents=True, exist_ok=True)
            self._check(host, ["mount", "--bind", str(backing), str(folder)])
        self.start_sshd(host)

    def inside(self, host: FarmHost, words: Sequence[str]) -> list[str]:
        target = str(self._init[host].pid)
        return ["nsenter", "--target", target, "--net", "--pid", "--mount", "--uts", "--", *words]

    def processes(self, host: FarmHost) -> list[psutil.Process]:
        init = self._init.get(host)
        if init is None or not alive(init):
            return []
        found = []
        for process in _living_in(_process_table(init.pid)):
            with suppress(psutil.NoSuchProcess):
                if process != init and not is_sshd(process):
                    found.append(process)
        return found

    def write_files(self) -> None:
        super().write_files()
        lines = [f"{host.address} {host.name}\n" for host in self.hosts]
        self._names.write_text("".join(["127.0.0.1 localhost\n", *lines]))
        for folder in self.private:
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def _names(self) -> Path:
        return self.directory / "hosts"

    def _check(self, host: FarmHost, words: Sequence[str]) -> None:
        subprocess.run(self.inside(host, words), check=True)

    def _listener(self, started: psutil.Process) -> psutil.Process:
        return started.children()[0]  # nsenter waits for it outside the host


@contextmanager
def namespace_farm(directory: Path, count: int = 3, private: Sequence[Path] = ()) -> Iterator[NamespaceFarm]:
    """Make a farm of `count` hosts in an empty folder; at the end, only that folder is left.

    Args:
        private: absolute paths of folders private to each host, empty at first; created here if missing.
    """
    assert 1 <= count <= 250
    directory = directory.resolve()
    # The farm's own files must be visible on every host, where its sshd reads them.
    assert not any(directory.is_relative_to(folder) for folder in private), "the farm's folder is private"
    tag, subnet = secrets.token_hex(4), free_subnet()
    hosts = tuple(
        FarmHost(f"node-{n}", str(subnet[n]), _SSH_PORT, directory / f"node-{n}") for n in range(1, count + 1)
    )
    uplink = f"farm-{tag}"
    try:
        with Keeper() as keeper:
            switch = switch_on(keeper, uplink, subnet, directory / "switch.log")
            farm = NamespaceFarm(directory, tag, hosts, keeper, switch, tuple(private))
            farm.write_files()
            for host in hosts:
                farm.power_on(host)
            yield farm
    finally:
        # We do not delete it, so that the hosts' closing sockets can still notify their peers.
        wait_until(lambda: uplink not in psutil.net_if_addrs(), "the end of the farm's interface")


def _process_table(pid: int) -> int:
    """Return the number of the PID namespace of a process."""
    return os.stat(f"/proc/{pid}/ns/pid").st_ino


def _living_in(table: int) -> list[psutil.Process]:
    """Return the processes of a PID namespace."""
    found = []
    for process in psutil.process_iter():
        try:
            if _process_table(process.pid) == table and alive(process):
                found.append(process)
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue  # it has ended, or is not of the farm, whose processes we may always inspect
    return found
