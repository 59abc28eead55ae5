"""The interface of all farms of sshd servers, however their hosts are made."""

from __future__ import annotations

import os
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from flagscale_testing.farm import sshd
from flagscale_testing.farm.credentials import FarmHost, write_credentials
from flagscale_testing.farm.keeper import Keeper

_START_WAIT = 30.0
_POLL = 0.05


@dataclass(frozen=True)
class Farm(ABC):
    """Hosts that each run a real sshd, and the home directory of a user who may log in to all of them.

    Attributes:
        directory: folder of everything that the farm writes; it remains, with the logs of every sshd.
        tag: unique id in the environment of every session (`FARM_TAG`).
    """

    directory: Path
    tag: str
    hosts: tuple[FarmHost, ...]
    keeper: Keeper
    _sshd: dict[FarmHost, psutil.Process] = field(default_factory=dict, init=False, repr=False)

    @property
    def home(self) -> Path:
        """The home directory whose `.ssh` knows every host, by address and by name."""
        return self.directory / "home"

    @property
    def config(self) -> Path:
        return self.home / ".ssh/config"

    def environment(self) -> dict[str, str]:
        """Return the environment for a launcher: ours, with the farm's home and without an SSH agent."""
        ours = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
        return ours | {"HOME": str(self.home)}

    def ssh_command(self, host: FarmHost, *words: str) -> list[str]:
        """Return a command line of OpenSSH's client, which finds its configuration by passwd, not by HOME."""
        return ["ssh", "-F", str(self.config), host.name, *words]

    def hostfile(self, slots: int, count: int | None = None) -> Path:
        """Write a hostfile of the first `count` hosts (default: all), by address; return its path."""
        hosts = self.hosts[:count]
        path = self.directory / f"hostfile-{len(hosts)}x{slots}"
        path.write_text("".join(f"{host.address} slots={slots}\n" for host in hosts))
        return path

    def write_files(self) -> None:
        """Write the keys and configurations of the user and of every sshd."""
        write_credentials(self.home, self.hosts)
        for host in self.hosts:
            sshd.write_config(host, self.home / ".ssh/authorized_keys", self.tag)

    def start_sshd(self, *hosts: FarmHost) -> None:
        """Start the sshd of these hosts unless it is running, and wait until all listen.

        Raises:
            RuntimeError: one did not start; the message includes its log.
        """
        before = {host: sshd.starts(host) for host in hosts if not self._listens(host)}
        for host in before:
            self._sshd[host] = self.keeper.start(self.inside(host, sshd.command(host)), host.log)
        for host, starts in before.items():
            wait_until(partial(self._settled, host, starts), f"the sshd of {host.name}")
            if not self._listens(host):
                raise RuntimeError(f"the sshd of {host.name} ended:\n{host.log.read_text()}")

    def stop_sshd(self, *hosts: FarmHost) -> None:
        """Make hosts refuse new connections; sessions go on, as when an administrator stops the service."""
        listeners = [self._listener(self._sshd.pop(host)) for host in hosts if self._listens(host)]
        for listener in listeners:
            listener.kill()
        psutil.wait_procs(listeners, _START_WAIT)

    def run(self, host: FarmHost, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command on a host without SSH, to inspect or disturb it; capture its output."""
        return subprocess.run(self.inside(host, words), capture_output=True, text=True)

    @abstractmethod
    def inside(self, host: FarmHost, words: Sequence[str]) -> list[str]:
        """Return the command line that runs `words` on the host when executed here."""

    @abstractmethod
    def processes(self, host: FarmHost) -> list[psutil.Process]:
        """Return the processes of a host, without its init and sshd: sessions, and what they left behind."""

    def _settled(self, host: FarmHost, starts: int) -> bool:
        return sshd.starts(host) > starts or not self._listens(host)

    def _listens(self, host: FarmHost) -> bool:
        return host in self._sshd and alive(self._sshd[host])

    def _listener(self, started: psutil.Process) -> psutil.Process:
        return started


def wait_until(holds: Callable[[], bool], what: str, seconds: float = _START_WAIT) -> None:
    """Wait until `holds` returns true; after `seconds`, raise TimeoutError, which names `what`."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(_POLL)


def alive(process: psutil.Process) -> bool:
    """Return whether this very process is still running; a zombie is not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def is_sshd(process: psutil.Process) -> bool:
    """Return whether it is an sshd: a listener, or a session (a separate program in newer versions).

    Raises psutil.NoSuchProcess if it has ended: what it was is unknown then.
    """
    return process.name().startswith("sshd")
