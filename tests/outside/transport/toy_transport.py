"""A transport from another package: every host, whatever its name, is a subprocess on this machine."""

from __future__ import annotations

import json
import os
import subprocess
from typing import Any

from flagscale.remote.transport import HostAccess


class SubprocessTransport:
    """Runs each node command in its own process, and records the requests."""

    def __init__(self, access: HostAccess) -> None:
        self._access = access

    def call(self, words: list[str], seconds: float) -> dict[str, Any]:
        with open(os.environ["TOY_TRANSPORT_NOTES"], "a", encoding="utf-8") as notes:
            notes.write(f"{self._access.host} {words[0]}\n")
        inherited = os.environ.get("PYTHONPATH", "")
        try:
            done = subprocess.run(
                [self._access.python, "-m", "flagscale.node", *words],
                env={**os.environ, "PYTHONPATH": f"{self._access.source_root}:{inherited}"},
                capture_output=True,
                text=True,
                timeout=seconds,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return {"ok": False, "message": f"no answer within {seconds:g} s", "unreachable": True}
        lines = done.stdout.splitlines()
        if not lines:
            return {"ok": False, "message": done.stderr.strip(), "unreachable": True}
        reply: dict[str, Any] = json.loads(lines[-1])
        return reply
