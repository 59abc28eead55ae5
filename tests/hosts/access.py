"""Access to hosts of a farm over SSH, one command at a time."""

from __future__ import annotations

import sys
import time

from flagscale.remote.ssh import SshTransport
from flagscale.remote.transport import HostAccess
from flagscale.run.state import Reply
from flagscale_testing.farm.farm import Farm
from tests.hosts.conftest import ROOT

TIMEOUT = 4.0


def way(host: str, **changes: object) -> SshTransport:
    access = {"python": sys.executable, "source_root": str(ROOT), "connect_timeout": TIMEOUT}
    return SshTransport(HostAccess(host, **{**access, **changes}))  # type: ignore[arg-type]


def ask(transport: SshTransport, directory: str = "/nowhere") -> Reply:
    """Send the cheapest command."""
    return transport.call(["vacant", directory], 20)


def refusal(transport: SshTransport) -> str:
    """Return why a host cannot be reached, which must be reported within the timeout."""
    begun = time.monotonic()
    reply = ask(transport)
    assert time.monotonic() - begun < TIMEOUT + 10  # allows for a busy machine; the message states the limit
    assert (reply["ok"], reply["unreachable"]) == (False, True)
    assert "Traceback" not in reply["message"]
    return str(reply["message"])


def configure(farm: Farm, text: str) -> None:
    """Insert lines before those of the farm in `~/.ssh/config`, where the first value of a key counts."""
    farm.config.write_text(text + farm.config.read_text())
