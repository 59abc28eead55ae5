"""Reach hosts: one open transport per host, kept for as long as the command runs, and one for its start."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

from flagscale import registry
from flagscale.node import commands
from flagscale.run.machine import is_local
from flagscale.run.state import Reply


@dataclass(frozen=True)
class HostAccess:
    """The data needed to perform a verb on a host."""

    host: str
    python: str
    """The interpreter on that host."""
    source_root: str
    """The clone of FlagScale on that host; empty if its interpreter has it installed."""
    transport: str = "ssh"
    """The registered name of the transport, if the host is not this one."""
    ssh_port: int | None = None
    """None: the port in `~/.ssh/config`, else 22."""
    connect_timeout: float = 10.0
    supervises: tuple[str, int] | None = None
    """Run id and host rank of the supervisor that a session of this transport may become at `start`."""


class Transport(Protocol):
    """Performs verbs (see `flagscale.node.commands`) on one host; created from a `HostAccess`.

    A third party adds one through the entry-point group `flagscale.transports`.
    """

    def call(self, words: list[str], seconds: float) -> Reply:
        """Return the command's reply; if the host cannot be reached, or does not answer within `seconds`,
        return a reply with `ok` False and the reason as `message`.

        Called by several threads at once.
        """
        ...


class LocalTransport:
    """This host: the command runs in this process, with the same code as on a remote host."""

    def __init__(self, access: HostAccess) -> None:
        pass

    def call(self, words: list[str], seconds: float) -> Reply:
        return commands.execute(words)


@cache
def transport(access: HostAccess) -> Transport:
    """Return the transport to a host; always the same one for the same host."""
    return _new(access)


@cache
def transport_of_start(access: HostAccess) -> Transport:
    """Return the transport by which a host is started; the same one until all of these are dropped.

    Its session is a process of the run, which must not stay if the run does not start:
    `transport_of_start.cache_clear()`.
    """
    return _new(access)


def _new(access: HostAccess) -> Transport:
    name = "local" if is_local(access.host) else access.transport
    made: Transport = registry.load("transports", name)(access)
    return made
