"""The agent of a host's services, as torchrun is the agent of its ranks: all of them run, or none does.

It passes on their output and checks the health of servers. It ends when a service ends that should not, and
reports why in the host's failure file; or when all services that run to an end have finished.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from types import FrameType

from flagscale.files import write_atomic
from flagscale.node.service import ServiceMonitor
from flagscale.run.failure import write_failure
from flagscale.run.rundir import RunDir
from flagscale.run.state import to_json
from flagscale.values import LaunchPlan, NodeCommand

_POLL = 0.2
_WRITE = 2.0
"""Seconds between two records of the services' states if no phase has changed."""
_LAST_WORDS = 2.0
"""Seconds of the grace that are reserved for the agent to record the result."""


def run(plan: LaunchPlan, node: NodeCommand) -> int:
    """Run the services of this host until they end or TERM, INT or HUP is received; return the exit code."""
    return _Agent(plan, node).run()


class _Agent:
    def __init__(self, plan: LaunchPlan, node: NodeCommand) -> None:
        self._plan, self._node, self._files = plan, node, RunDir(Path(plan.exp_dir))
        self._serves = plan.task_type == "serve"
        self._services: list[ServiceMonitor] = []
        self._begun = time.time()
        self._stop_requested = False
        self._written, self._due = "", 0.0

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_request)
        with_name = len(self._node.services) > 1
        for service in self._node.services:
            self._services.append(
                ServiceMonitor(service, self._files, self._node.host, self._serves, with_name)
            )
        while True:
            code = self._step()
            self._record(is_last=code is not None)
            if code is not None:
                return code
            time.sleep(_POLL)

    def _step(self) -> int | None:
        """Return the exit code once there is nothing left to wait for."""
        if self._stop_requested:
            self._end()
            return 0
        ended = [one for one in self._services if one.code is not None]
        bad = next((one for one in ended if self._serves or one.code != 0), None)
        if bad is not None:
            write_failure(Path(self._node.failure_file), bad.failure())
            bad.settle("failed")
            self._end()
            return bad.code if bad.code and bad.code > 0 else 1
        for one in ended:
            one.look_at_progress()
            one.settle("finished")
        if len(ended) == len(self._services):
            return 0
        if all(one.goes_on or self._is_loading(one) for one in self._services):
            self._files.heartbeat(self._node.host).touch()
        return None

    def _is_loading(self, one: ServiceMonitor) -> bool:
        """Return whether a server is still loading, so that it is too early to call it hung."""
        return one.state.phase == "starting" and time.time() < self._begun + self._plan.ready_timeout

    def _end(self) -> None:
        """Signal the services to end and wait for them; the supervisor ends what they leave behind."""
        living = [one for one in self._services if one.code is None]
        for one in living:
            one.process.terminate()
        deadline = time.monotonic() + max(0.0, self._node.stop_grace - _LAST_WORDS)
        for one in living:
            one.end_by(deadline)

    def _record(self, is_last: bool) -> None:
        """Record the states of the services: at once if a phase has changed, else every two seconds."""
        states = [one.state for one in self._services]
        phases = str([state.phase for state in states])
        if not is_last and phases == self._written and time.monotonic() < self._due:
            return
        self._written, self._due = phases, time.monotonic() + _WRITE
        try:
            write_atomic(self._files.services(self._node.host), to_json(self._plan.run_id, states))
        except OSError as error:  # a full disk must not end servers
            print(f"flagscale: cannot write the service status: {error}", flush=True)

    def _on_request(self, number: int, frame: FrameType | None) -> None:
        self._stop_requested = True
