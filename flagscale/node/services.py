"""The agent of a host's services, as torchrun is the agent of its ranks.

It passes on their output and checks the health of servers. It ends when a service ends that should not, and
reports why in the host's failure file; or when all services that run to an end have finished. The instances
behind one address live apart: see `instances`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FrameType

from flagscale.files import write_atomic
from flagscale.node import drain
from flagscale.node.instances import is_lost
from flagscale.node.keeper import ServiceKeeper
from flagscale.node.service import ServiceMonitor
from flagscale.run.failure import Failure, write_failure
from flagscale.run.rundir import RunDir
from flagscale.run.state import to_json
from flagscale.values import LaunchPlan, NodeCommand

_POLL = 0.2
_WRITE = 2.0
"""Seconds between two records of the services' states if no phase has changed."""


def run(plan: LaunchPlan, node: NodeCommand) -> int:
    """Run the services of this host until they end or TERM, INT or HUP is received; return the exit code."""
    return _Agent(plan, node).run()


class _Agent:
    def __init__(self, plan: LaunchPlan, node: NodeCommand) -> None:
        self._plan, self._node, self._files = plan, node, RunDir(Path(plan.exp_dir))
        self._services: list[ServiceKeeper] = []
        self._begun = time.time()
        self._stop_requested = False
        self._written, self._due = "", 0.0

    def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_request)
        for service in self._node.services:
            self._services.append(ServiceKeeper(self._plan, self._node, service))
        while True:
            code = self._step()
            self._record(is_last=code is not None)
            if code is not None:
                return code
            time.sleep(_POLL)

    def _step(self) -> int | None:
        """Return the exit code once there is nothing left to wait for."""
        if self._stop_requested:
            self._end(self._node.stop_grace)
            return 0
        if failure := next(self._failures(), None):
            write_failure(Path(self._node.failure_file), failure)
            self._end(0.0)
            return failure.exitcode if failure.exitcode and failure.exitcode > 0 else 1
        if all(one.state.phase == "finished" for one in self._services):
            return 0
        joint = [one.monitor for one in self._services if not one.lives_apart]
        if all(one.goes_on or self._is_loading(one) for one in joint):
            self._files.heartbeat(self._node.host).touch()
        return None

    def _monitors(self) -> list[ServiceMonitor]:
        return [one.monitor for one in self._services]

    def _failures(self) -> Iterator[Failure]:
        """Yield the reasons to end the job."""
        for one in self._services:
            if failure := one.step():
                yield failure
        for one in self._services:
            if one.monitor.kind == "router" and one.lives_apart and (failure := self._lost(one)):
                yield failure

    def _lost(self, router: ServiceKeeper) -> Failure | None:
        """Return the first failure of the instances behind a router if none of them can answer again."""
        name = router.monitor.service.name
        here = [one for one in self._services if one.monitor.service.behind == name]
        instances = [one for one in self._plan.services if one.behind == name and one.url]
        lost = is_lost(
            [one.state.phase for one in here],
            len(here) == len(instances),
            router.monitor.unhealthy_for,
            self._plan.recovery.max_restarts,
            self._plan.ready_timeout,
        )
        if not lost:
            return None
        print(f"flagscale: no instance of `{name}` is left", flush=True)
        failures = [one.failure for one in here if one.failure]
        silence = f"`{name}`: no instance has answered for {router.monitor.unhealthy_for:.0f} s"
        first = min(failures, key=lambda failure: failure.time, default=Failure(silence, time=time.time()))
        return replace(first, is_final=True)

    def _is_loading(self, one: ServiceMonitor) -> bool:
        """Return whether a server is still loading, so that it is too early to call it hung."""
        return one.state.phase == "starting" and time.time() < self._begun + self._plan.ready_timeout

    def _end(self, seconds: float) -> None:
        """End the services; begun requests have some seconds to finish."""
        living = [one for one in self._monitors() if one.code is None]
        drain.end(living, self._plan, seconds)
        for one in self._monitors():
            one.enter("stopped")

    def _record(self, is_last: bool) -> None:
        """Record the states of the services: at once if a phase has changed, else every two seconds."""
        states = [one.state for one in self._services]
        phases = str([(state.phase, state.restarts) for state in states])
        if not is_last and phases == self._written and time.monotonic() < self._due:
            return
        self._written, self._due = phases, time.monotonic() + _WRITE
        try:
            write_atomic(self._files.services(self._node.host), to_json(self._plan.run_id, states))
        except OSError as error:  # a full disk must not end servers
            print(f"flagscale: cannot write the service status: {error}", flush=True)

    def _on_request(self, number: int, frame: FrameType | None) -> None:
        self._stop_requested = True
