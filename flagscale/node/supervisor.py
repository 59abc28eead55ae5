"""The supervisor: one process a host, in its own session, that starts the engine's launcher and ends with it.

It writes the host's state, ends the whole tree when told to (TERM) or when the launcher ended, and says which
rank failed first. A guard beside it does the ending should the supervisor itself be killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from types import FrameType

import psutil

from flagscale.job import LaunchPlan, NodeCommand
from flagscale.launch.rundir import RunDir
from flagscale.node import processes
from flagscale.node.failure import first_failure
from flagscale.node.linux import adopt_orphans, die_with, reap_adopted
from flagscale.node.state import Failure, HostState, Phase, ProcessId

_POLL = 0.1
_LEFTOVER_GRACE = 2.0
"""Seconds that what is left of a run gets after its launcher has ended."""
_NOTHING_TO_SAVE = 10.0
"""The longest grace of a launcher that has started no ranks yet."""
_GUARD_PAUSE = 5.0
"""Seconds between two starts of the guard, should it never live long."""


class Supervisor:
    """Runs one host's share of a plan; `run` returns the launcher's exit code (0 when stopped)."""

    def __init__(self, plan: LaunchPlan, node: NodeCommand) -> None:
        self._plan, self._node = plan, node
        self._files = RunDir(Path(plan.exp_dir))
        self._told_to_stop = False
        self._guard: subprocess.Popen[bytes] | None = None
        self._guard_due = 0.0
        self._state = HostState(plan.run_id, "starting", ProcessId.of(os.getpid()), started=time.time())

    def run(self) -> int:
        adopt_orphans()
        # Waits until the starter has written its own first state. TERM is not caught yet: it just ends us.
        with self._files.on_host(self._node.host):
            self._record()
        signal.signal(signal.SIGTERM, self._on_term)
        for ignored in (signal.SIGINT, signal.SIGHUP):
            # Not SIG_IGN, which the engine would inherit.
            signal.signal(ignored, lambda number, frame: None)
        try:
            self._keep_guard()
            engine = self._start_engine()
            self._record(phase="running", engine=ProcessId.of(engine.pid))
        except (OSError, ValueError) as error:
            self._end_leftovers()
            return self._finish(
                "failed", 1, Failure(f"the engine cannot be started: {error}", time=time.time())
            )
        stopped = self._watch(engine)
        self._note(phase="stopping")
        if stopped:
            self._end_engine(engine)
        return self._end(engine, stopped)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self._told_to_stop = True

    def _record(self, **values: object) -> None:
        self._state = self._state.changed(**values)
        self._state.write(self._files.state(self._node.host))

    def _note(self, **values: object) -> None:
        """Record what comes after a confirmed start; a full disk must not end a job."""
        try:
            self._record(**values)
        except OSError as error:
            print(f"flagscale: cannot write the state of the run: {error}", flush=True)

    def _start_engine(self) -> subprocess.Popen[bytes]:
        Path(self._node.failure_file).unlink(missing_ok=True)
        return subprocess.Popen(
            self._node.argv,
            env={**os.environ, **self._node.env, **self._secrets()},
            cwd=self._node.cwd,
            stdin=subprocess.DEVNULL,
            preexec_fn=partial(die_with, os.getpid()),
        )

    def _secrets(self) -> dict[str, str]:
        path = self._files.secrets(self._node.host)
        try:
            secrets: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        path.unlink()
        return secrets

    def _keep_guard(self) -> None:
        """Start the guard, also again should it have been killed: the two watch each other."""
        if (self._guard and self._guard.poll() is None) or time.monotonic() < self._guard_due:
            return
        self._guard_due = time.monotonic() + _GUARD_PAUSE
        again = self._guard is not None
        try:
            self._guard = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "flagscale.node",
                    "guard",
                    self._plan.exp_dir,
                    str(self._node.host.rank),
                ],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )
        except OSError as error:
            print(f"flagscale: cannot start the guard: {error}", flush=True)
            return
        self._state = self._state.changed(guard=ProcessId.of(self._guard.pid))
        if again:
            self._note()

    def _watch(self, engine: subprocess.Popen[bytes]) -> bool:
        """Return True when told to stop, False when the engine has ended by itself."""
        while engine.poll() is None:
            if self._told_to_stop:
                return True
            self._keep_guard()
            reap_adopted({engine.pid, self._guard.pid if self._guard else 0})
            time.sleep(_POLL)
        return False

    def _end_engine(self, engine: subprocess.Popen[bytes]) -> None:
        """Tell the launcher, which tells its ranks, and let them save what they have to."""
        process = psutil.Process(engine.pid)
        grace = self._node.stop_grace
        if not process.children():
            grace = min(grace, _NOTHING_TO_SAVE)
        processes.send([process], signal.SIGTERM)
        try:
            engine.wait(grace)
        except subprocess.TimeoutExpired:
            pass  # what is left is ended by the caller

    def _end(self, engine: subprocess.Popen[bytes], stopped: bool) -> int:
        self._end_leftovers()
        exit_code = engine.poll()
        if exit_code is None:  # stuck in the kernel
            exit_code = -signal.SIGKILL
        if stopped:
            return self._finish("stopped", exit_code)
        if exit_code == 0:
            return self._finish("finished", 0)
        return self._finish("failed", exit_code, first_failure(self._plan, self._node, exit_code))

    def _end_leftovers(self) -> None:
        guard = self._guard.pid if self._guard else 0

        def leftovers() -> set[psutil.Process]:
            found = processes.of_run(self._plan.run_id, self._node.host.rank, os.getpid())
            return {process for process in found if process.pid != guard}

        processes.end(leftovers, _LEFTOVER_GRACE)

    def _finish(self, phase: Phase, exit_code: int, failure: Failure | None = None) -> int:
        self._note(phase=phase, exit_code=exit_code, failure=failure, ended=time.time())
        if self._guard:
            self._guard.kill()
            self._guard.wait()
        return 0 if phase == "stopped" else exit_code
