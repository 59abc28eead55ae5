"""The network of a namespace farm: a bridge in its own network namespace, with a cable to every host.

Only the launcher's end of one cable is in the root namespace, and the kernel removes it as well when the
switch's only process dies. So a killed farm leaves nothing behind, and the machine's firewall rules do not
apply between its hosts.
"""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import psutil

from flagscale_testing.farm.credentials import FarmHost
from flagscale_testing.farm.farm import wait_until
from flagscale_testing.farm.keeper import Keeper
from flagscale_testing.farm.sshd import find_program

_BRIDGE = "bridge"
_HOST_END = "eth0"
_PRIVATE = [IPv4Network(pool) for pool in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")]
_SUBNET_SIZE = 256
_TRIALS = 1000


@dataclass(frozen=True)
class Switch:
    """A running switch, whose ports have the names of the hosts.

    Attributes:
        uplink: the interface in the root namespace; its address is `launcher`.
    """

    subnet: IPv4Network
    uplink: str
    process: psutil.Process

    @property
    def launcher(self) -> IPv4Address:
        return self.subnet[-2]

    def plug_in(self, host: FarmHost, pid: int) -> None:
        """Connect the network namespace of a process: bring up `lo`, and `eth0` with the host's address."""
        # Always the same MAC address, so that neighbours find a host again after a power-off.
        mac = ":".join(f"{byte:02x}" for byte in (2, 0, *IPv4Address(host.address).packed))
        self._ip(f"link add {host.name} type veth peer name {_HOST_END} address {mac} netns {pid}")
        self._ip(f"link set {host.name} master {_BRIDGE} up")
        inside = ["link set lo up", f"address add {host.address}/{self.subnet.prefixlen} dev {_HOST_END}"]
        _ip([*inside, f"link set {_HOST_END} up"], pid)

    def unplug(self, host: FarmHost) -> None:
        """Remove a host's cable; `plug_in` adds a new one."""
        self._ip(f"link delete {host.name}")

    def set_link(self, host: FarmHost, state: str) -> None:
        """Make a host's cable carry packets ("up") or drop them ("down")."""
        self._ip(f"link set {host.name} {state}")

    def _ip(self, command: str) -> None:
        _ip([command], self.process.pid)


def switch_on(keeper: Keeper, uplink: str, subnet: IPv4Network, log: Path) -> Switch:
    """Start a switch; it ends with the keeper, and the kernel removes its uplink a moment later."""
    process = keeper.start(["unshare", "--net", "sleep", "infinity"], log)
    wait_until(lambda: process.name() == "sleep", "the network namespace of the switch")
    switch = Switch(subnet, uplink, process)
    _ip([f"link add {_BRIDGE} type bridge", f"link set {_BRIDGE} up"], process.pid)
    _ip(
        [
            f"link add {uplink} type veth peer name uplink netns {process.pid}",
            f"address add {switch.launcher}/{subnet.prefixlen} dev {uplink}",
            f"link set {uplink} up",
        ]
    )
    _ip([f"link set uplink master {_BRIDGE} up"], process.pid)
    return switch


def free_subnet() -> IPv4Network:
    """Return a random private /24 network that no route of this machine leads to."""
    words = [ip_program(), "-4", "-json", "route", "show", "table", "all"]
    routes = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    used = [IPv4Network(route["dst"]) for route in routes if route["dst"] != "default"]
    for _ in range(_TRIALS):
        pool = random.choice(_PRIVATE)
        subnet = IPv4Network((random.choice(range(int(pool[0]), int(pool[-1]), _SUBNET_SIZE)), 24))
        if not any(subnet.overlaps(other) for other in used):
            return subnet
    raise RuntimeError("no free private subnet was found")


def ip_program() -> str:
    """Return the path of ip(8)."""
    program = find_program("ip")
    assert program, "iproute2 is not installed"
    return program


def _ip(commands: Sequence[str], pid: int | None = None) -> None:
    """Run ip(8) commands, here or in the network namespace of a process."""
    enter = [] if pid is None else ["nsenter", "--target", str(pid), "--net", "--"]
    done = subprocess.run(
        [*enter, ip_program(), "-batch", "-"], input="\n".join(commands), capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"ip: {done.stderr.strip()}\n" + "\n".join(commands))
