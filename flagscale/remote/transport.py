"""How the launcher reaches hosts: one open way to each, kept for as long as the command lives."""

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
    """What must be known of a host to perform a verb there."""

    host: str
    python: str
    """The interpreter, on that host."""
    source_root: str
    """The clone of FlagScale on that host; empty if its interpreter has it installed."""
    transport: str = "ssh"
    """The registered name of the way to a host that is not this one."""
    ssh_port: int | None = None
    """None: what `~/.ssh/config` says, else 22."""
    connect_timeout: float = 10.0


class Transport(Protocol):
    """Performs verbs (see `flagscale.node.commands`) on one host; made from a `HostAccess`.

    A third party adds one by the entry-point group `flagscale.transports`.
    """

    def call(self, words: list[str], seconds: float) -> Reply:
        """Return the command's reply; a host that cannot be reached, or does not answer within `seconds`, is
        a reply with `ok` False and the reason.

        Called by several threads at once.
        """
        ...


class LocalTransport:
    """This host: the command runs in this process, through the same code that a remote host would run."""

    def __init__(self, access: HostAccess) -> None:
        pass

    def call(self, words: list[str], seconds: float) -> Reply:
        return commands.execute(words)


@cache
def transport(access: HostAccess) -> Transport:
    """Return the way to a host, the same one again for the same host."""
    made: Transport = registry.load("transports", "local" if is_local(access.host) else access.transport)(
        access
    )
    return made
