"""A script that owns a farm until its stdin ends, for tests that kill it: `owner KIND DIRECTORY`.

It starts daemons on one host, one of them without the farm's marks, and a session on another. Then it prints
the tag of the farm and the pids of its processes as JSON, the keeper's first.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import psutil

from flagscale_testing.farm.farm import Farm, wait_until
from flagscale_testing.farm.loopback import loopback_farm
from flagscale_testing.farm.namespaces import namespace_farm

# One daemon leaves its session; the other also drops its environment.
DAEMONS = "setsid sleep 600 >&- 2>&- <&- & env -i setsid sleep 601 >&- 2>&- <&- &"


def sleepers(processes: Iterable[psutil.Process]) -> set[str]:
    """Return the durations of all `sleep` commands among the processes."""
    found: set[str] = set()
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.name() == "sleep":
                found.update(process.cmdline()[1:])
    return found


def main(kind: str, directory: Path) -> None:
    made: AbstractContextManager[Farm] = loopback_farm(directory, 2)
    if kind == "namespaces":
        made = namespace_farm(directory, 2, [directory.with_name("private")])
    with made as farm:
        # They do not share our stdin: ssh would make reads of it return before there is anything to read.
        subprocess.run(farm.ssh_command(farm.hosts[1], DAEMONS), stdin=subprocess.DEVNULL, check=True)
        # The session's client is not a process of the farm, so it must end by itself.
        session = ["setpriv", "--pdeathsig", "KILL", *farm.ssh_command(farm.hosts[0], "sleep 602")]
        subprocess.Popen(session, stdin=subprocess.DEVNULL)
        wait_until(lambda: {"600", "601", "602"} <= sleepers(farm.keeper.processes()), "the sleepers")
        processes = [process.pid for process in farm.keeper.processes()]
        print(json.dumps([farm.tag, farm.keeper.pid, *processes]), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
