"""How a launcher reaches a host: the one place besides `node/` that touches processes and sockets."""

from __future__ import annotations

from typing import Protocol

from flagscale.job import Host
from flagscale.node import commands
from flagscale.node.state import Reply


class Transport(Protocol):
    """Performs a node command on a host; added by the entry-point group `flagscale.transports`."""

    def call(self, host: Host, words: list[str]) -> Reply:
        """Return the command's reply; an unreachable host is a reply with `ok` False and the reason."""
        ...


class LocalTransport:
    """This host: the command runs in this process, through the same code that a remote host would run."""

    def call(self, host: Host, words: list[str]) -> Reply:
        return commands.execute(words)
