"""Hosts by the thousand: one process plays them all, over real TCP connections and SSH handshakes.

Each host is an address of the loopback interface. What it answers is in `player`; what it does, in `parts`.
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flagscale.config.host_names import expand
from flagscale_testing.farm.credentials import account, write_key
from flagscale_testing.farm.parts import BEFORE_START, REASONS, Part

ROOT = Path(__file__).resolve().parents[2]
_PORTS = range(14000, 19000)


@dataclass(frozen=True)
class PlayedFarm:
    """Hosts that a child process plays, and the home directory of a user who may log in to them."""

    directory: Path
    parts: tuple[Part, ...]
    player: int
    """The pid of that process."""

    @property
    def home(self) -> Path:
        """The home directory whose `.ssh` knows every host."""
        return self.directory / "home"

    def environment(self) -> dict[str, str]:
        """Return the environment for a launcher: ours, with the farm's home and without an SSH agent."""
        ours = {name: value for name, value in os.environ.items() if name != "SSH_AUTH_SOCK"}
        return ours | {"HOME": str(self.home)}

    def events(self) -> list[Mapping[str, Any]]:
        """Return what has happened so far: `time` (monotonic), `host` (address), and `event`.

        Events: `login`, `start` and `stop` (each verb by its name), `started`, `stopped` (it was running),
        `gone` (the connection has ended).
        """
        lines = (self.directory / "events").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def count(self, event: str) -> Counter[str]:
        """Return how often an event has happened, by the address of the host."""
        return Counter(one["host"] for one in self.events() if one["event"] == event)

    def left_running(self) -> list[str]:
        """Return the hosts on which a supervisor was started and not stopped."""
        return sorted((self.count("started") - self.count("stopped")).keys())

    def mistakes_in(self, report: str) -> Iterator[str]:
        """Yield what is wrong with the report of a failed start: it must name each failing host once.

        Hosts that fail to start need not be named if no host was asked to start, and those that would have
        failed late may have been stopped before.
        """
        reported: dict[str, list[str]] = {}
        for entry in re.split(r"(?m)^- ", report)[1:]:
            names, _, reason = entry.partition(": ")
            for host in expand(names):
                reported.setdefault(host, []).append(reason)
        failing = {part.address: part.fault for part in self.parts if part.fault}
        certain = {host for host, fault in failing.items() if fault in BEFORE_START}
        certain = certain or {host for host, fault in failing.items() if "late" not in fault}
        for host in sorted(certain - reported.keys()):
            yield f"{host} is missing ({failing[host]})"
        for host, reasons in reported.items():
            fault = failing.get(host)
            if fault is None or len(reasons) > 1 or REASONS[fault] not in reasons[0]:
                yield f"{host} ({fault}): {reasons}"


@contextmanager
def played_farm(directory: Path, parts: Sequence[Part]) -> Iterator[PlayedFarm]:
    """Play hosts until the end; `directory` is created."""
    port = random.choice(_PORTS)
    _write_credentials(directory, port)
    file = directory / "parts.json"
    file.write_text(json.dumps({"port": port, "parts": [asdict(part) for part in parts]}))
    words = [sys.executable, "-m", "flagscale_testing.farm.player", str(directory)]
    with subprocess.Popen(
        words, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as player:
        try:
            if not player.stdout or player.stdout.readline() != b"ready\n":
                raise RuntimeError(f"no process plays the hosts: it ended with exit code {player.wait()}")
            yield PlayedFarm(directory, tuple(parts), player.pid)
        finally:
            player.kill()


def _write_credentials(directory: Path, port: int) -> None:
    folder = directory / "home/.ssh"
    folder.mkdir(parents=True, mode=0o700)
    write_key(folder / "id_ed25519")
    public = write_key(directory / "host_key")
    (folder / "known_hosts").write_text(f"[127.*]:{port} {public}\n")
    (folder / "config").write_text(
        f"Host 127.*\n  Port {port}\n  User {account().pw_name}\n  IdentityFile {folder}/id_ed25519\n"
        f"  IdentitiesOnly yes\n  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
        "  StrictHostKeyChecking yes\n"
    )
