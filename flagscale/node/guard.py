"""The guard: ends a run on its host if the supervisor is killed before it could."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

from flagscale.job import LaunchPlan, NodeCommand
from flagscale.launch.rundir import RunDir
from flagscale.node import processes
from flagscale.node.state import ENDED, Failure, read_state

_GRACE = 2.0
KILLED = "the supervisor was killed; its guard ended the processes of the run"


def guard(plan: LaunchPlan, node: NodeCommand) -> int:
    """Wait for the end of the supervisor (its end of our stdin closes with it), then end what it left.

    A supervisor that ends well kills its guard first.
    """
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    sys.stdin.buffer.read()
    path = RunDir(Path(plan.exp_dir)).state(node.host)
    state = read_state(path, plan.run_id)
    # The supervisor died a moment ago, so its process group cannot be another's yet.
    group = state.supervisor.pid if state and state.supervisor else None
    processes.end(lambda: processes.of_run(plan.run_id, node.host.rank, group), _GRACE)
    state = read_state(path, plan.run_id)
    if state and state.phase not in ENDED:
        failure = Failure(KILLED, exitcode=1, time=time.time())
        state.changed(phase="failed", ended=time.time(), exit_code=1, failure=failure).write(path)
    return 0
