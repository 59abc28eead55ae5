"""The guard: ends a run on its host if the supervisor is killed before it could do so."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from flagscale.node import processes
from flagscale.run.failure import Failure
from flagscale.run.rundir import RunDir
from flagscale.run.state import ENDED, ProcessId, read_state
from flagscale.values import LaunchPlan, NodeCommand

_GRACE = 2.0
_PAUSE = 5.0
"""Minimum seconds between two starts of the guard, in case it keeps dying."""
_FIRST_FILE = 3
"""The first open file that is not standard input, output or error."""
KILLED = "the supervisor was killed; its guard ended the processes of the run"


def guard(plan: LaunchPlan, node: NodeCommand, supervisor: int) -> None:
    """Wait for the end of the supervisor (its end of this pipe closes with it), then end what it left.

    A supervisor that ends normally kills its guard first.
    """
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(ignored, signal.SIG_IGN)
    os.read(supervisor, 1)
    path = RunDir(Path(plan.exp_dir)).state(node.host)
    state = read_state(path, plan.run_id)
    # The supervisor died a moment ago, so no other process can have its process group yet.
    group = state.supervisor.pid if state and state.supervisor else None
    processes.end(lambda: processes.of_run(plan.run_id, node.host.rank, group), _GRACE)
    state = read_state(path, plan.run_id)
    if state and state.phase not in ENDED:
        failure = Failure(KILLED, exitcode=1, time=time.time())
        state.changed(phase="failed", ended=time.time(), exit_code=1, failure=failure).write(path)


class GuardKeeper:
    """The supervisor's side: keeps a guard running at all times, because the two watch each other."""

    def __init__(self, plan: LaunchPlan, node: NodeCommand) -> None:
        self._plan, self._node = plan, node
        self._due = 0.0
        self._pipe = -1
        self.pid = 0
        """The pid of the guard; 0 if there is none."""

    def keep(self) -> ProcessId | None:
        """Start the guard if it is not running; return the new guard, else None."""
        if self._lives() or time.monotonic() < self._due:
            return None
        self._due = time.monotonic() + _PAUSE
        try:
            self._start()
        except OSError as error:
            print(f"flagscale: cannot start the guard: {error}", flush=True)
            return None
        return ProcessId.of(self.pid)

    def end(self) -> None:
        """End the guard, because its supervisor ends normally."""
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _lives(self) -> bool:
        if self.pid and os.waitpid(self.pid, os.WNOHANG)[0]:
            os.close(self._pipe)
            self.pid = 0
        return self.pid != 0

    def _start(self) -> None:
        """Fork: a new Python would take longer to start than everything else in a supervisor.

        The other threads of a supervisor hold no lock that a guard takes, so it may be forked at any time.
        """
        reader, self._pipe = os.pipe()
        try:
            self.pid = os.fork()
        except OSError:
            os.close(self._pipe)
            os.close(reader)
            raise
        if self.pid:
            os.close(reader)
            return
        try:
            os.setsid()
            os.close(self._pipe)
            os.dup2(reader, 0)
            # The guard must not keep connections to other hosts open.
            os.closerange(_FIRST_FILE, os.sysconf("SC_OPEN_MAX"))
            guard(self._plan, self._node, 0)
        except BaseException:
            import traceback  # here, because a start does not need it

            traceback.print_exc()
        finally:
            os._exit(0)
