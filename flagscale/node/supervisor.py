"""The supervisor: one process a host, in its own session, that starts the engine's launcher and outlives nothing.

It writes the host's state, ends the whole tree when told to (TERM) or when the launcher ended, and says which
rank failed first. A guard beside it does the ending should the supervisor itself be killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import psutil

from flagscale.job import LaunchPlan, NodeCommand
from flagscale.launch.rundir import RunDir
from flagscale.node import processes
from flagscale.node.failure import first_failure
from flagscale.node.linux import die_with_parent
from flagscale.node.state import HostState, ProcessId

_POLL = 0.2
_LEFTOVER_GRACE = 2.0
"""Seconds that what is left of a run gets after its launcher has ended."""


class Supervisor:
    """Runs one host's share of a plan; `run` returns the launcher's exit code (0 when stopped)."""

    def __init__(self, plan: LaunchPlan, node: NodeCommand) -> None:
        self._plan, self._node = plan, node
        self._files = RunDir(Path(plan.exp_dir))
        self._stop = threading.Event()
        self._guard: subprocess.Popen[bytes] | None = None
        self._state = HostState(plan.run_id, "starting", ProcessId.of(os.getpid()), started=time.time())

    def run(self) -> int:
        signal.signal(signal.SIGTERM, self._on_term)
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        self._record()
        try:
            engine = self._start_engine()
        except OSError as error:
            return self._finish(1, f"cannot start {self._node.argv[0]}: {error.strerror}")
        try:
            self._record(phase="running", engine=ProcessId.of(engine.pid))
            while engine.poll() is None and not self._stop.is_set():
                self._keep_guard()
                self._stop.wait(_POLL)
            if self._stop.is_set():
                self._record(phase="stopping")
                self._end_ranks(engine)
        finally:
            processes.end(self._leftovers, _LEFTOVER_GRACE)
        return self._finish(engine.wait())

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self._stop.set()

    def _record(self, **values: object) -> None:
        self._state = self._state.changed(**values)
        self._state.write(self._files.state(self._node.host))

    def _start_engine(self) -> subprocess.Popen[bytes]:
        Path(self._node.failure_file).unlink(missing_ok=True)
        return subprocess.Popen(
            self._node.argv,
            env={**os.environ, **self._node.env, **self._secrets()},
            cwd=self._node.cwd,
            stdin=subprocess.DEVNULL,
            preexec_fn=die_with_parent,
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
        if self._guard is None or self._guard.poll() is not None:
            words = ["guard", self._plan.exp_dir, str(self._node.host.rank)]
            self._guard = subprocess.Popen(
                [sys.executable, "-m", "flagscale.node", *words],
                stdin=subprocess.PIPE,
                start_new_session=True,
            )

    def _end_ranks(self, engine: subprocess.Popen[bytes]) -> None:
        """Give the ranks, not their launcher, the chance to end well: torchrun would cut their grace short.

        A launcher that has no ranks yet is told to end itself, lest it start them meanwhile.
        """
        told: set[psutil.Process] = set()
        deadline = time.monotonic() + self._node.stop_grace
        while engine.poll() is None and time.monotonic() < deadline:
            try:
                launcher = psutil.Process(engine.pid)
                waiting = set(launcher.children()) or {launcher}
            except psutil.NoSuchProcess:
                return
            processes.send(waiting - told, signal.SIGTERM)
            told |= waiting
            time.sleep(_POLL)

    def _leftovers(self) -> set[psutil.Process]:
        guard = {self._guard.pid} if self._guard else set()
        return {
            process
            for process in processes.of_run(self._plan.run_id, self._state.supervisor)
            if process.pid not in guard
        }

    def _finish(self, exit_code: int, message: str = "") -> int:
        ended: dict[str, object] = {"ended": time.time(), "exit_code": exit_code}
        if self._stop.is_set():
            self._record(phase="stopped", **ended)
        elif exit_code == 0:
            self._record(phase="finished", **ended)
        else:
            files = self._files
            failure = first_failure(exit_code, files.failure(self._node.host), files.output(self._node.host), message)
            self._record(phase="failed", failure=failure, **ended)
        if self._guard and self._guard.stdin:
            self._guard.kill()
            self._guard.wait()
        return 0 if self._stop.is_set() else exit_code
