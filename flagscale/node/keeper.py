"""Keeps one service running by the rules of `instances`: it starts an instance again, or gives it up."""

from __future__ import annotations

import time
from dataclasses import replace
from threading import Thread

from flagscale.node import processes
from flagscale.node.instances import pause, sequel, silence_allowed
from flagscale.node.service import ServiceMonitor
from flagscale.run.failure import Failure
from flagscale.run.state import OVER, ServiceState
from flagscale.values import LaunchPlan, NodeCommand, Service

_LEFTOVER_GRACE = 1.0
"""Seconds that the remaining processes of a service have to end before it is started again."""


class ServiceKeeper:
    """A service of this host, over all its processes."""

    def __init__(self, plan: LaunchPlan, node: NodeCommand, service: Service) -> None:
        """Start the service. Raises OSError if that fails."""
        self._plan, self._node = plan, node
        self.monitor = ServiceMonitor(plan, node, service)
        self._has_ever_answered = False
        self._restarts = 0
        self._failed_at: float | None = None
        """When the last process ended, until the next one starts."""
        self._due = 0.0
        self._clearing: Thread | None = None
        self.failure: Failure | None = None
        """Why it last ended by itself."""

    @property
    def lives_apart(self) -> bool:
        """Whether its end is not the end of the job: this begins when it answers for the first time."""
        self._has_ever_answered = self._has_ever_answered or self.monitor.has_answered
        return self.monitor.kind != "joint" and self._has_ever_answered

    @property
    def state(self) -> ServiceState:
        state = replace(self.monitor.state, restarts=self._restarts, failure=self.failure)
        if self._failed_at is None or state.phase in OVER:
            return state
        return state.entered("restarting", self._failed_at)

    def step(self) -> Failure | None:
        """Look at the service; return why the job must end, if it must."""
        if self.monitor.state.phase in OVER:
            return None
        if self._failed_at is not None:
            return self._start_again()
        if self.monitor.code == 0 and self._plan.task_type != "serve":
            self.monitor.look_at_progress()
            self.monitor.enter("finished")
            return None
        if self.monitor.code is not None:
            return self._ended(self.monitor.failure(), self.monitor.code)
        self._end_if_silent()
        return None

    def _ended(self, failure: Failure, code: int) -> Failure | None:
        most = self._plan.recovery.max_restarts
        follows = sequel(self.monitor.kind, not self.lives_apart, code, self._restarts, most)
        self.failure = replace(failure, is_final=self.lives_apart and follows != "start again")
        if follows == "start again":
            self._restarts += 1
            wait = pause(self.monitor.kind, self._restarts)
            name = self.monitor.service.name
            print(f"flagscale: {failure.message}", flush=True)
            print(f"flagscale: restart {self._restarts} of {most} of {name} in {wait:g} s", flush=True)
            self._failed_at, self._due = time.time(), time.monotonic() + wait
            self._clearing = Thread(target=self._end_leftovers, daemon=True)
            self._clearing.start()
            return None
        self.monitor.enter("failed")
        if follows == "end the job":
            return self.failure
        print(f"flagscale: {failure.message}; it is not started again", flush=True)
        Thread(target=self._end_leftovers, daemon=True).start()
        return None

    def _start_again(self) -> Failure | None:
        """Start the next process once it is time and nothing is left of the last one."""
        if time.monotonic() < self._due or (self._clearing and self._clearing.is_alive()):
            return None
        self._failed_at = None
        service = self.monitor.service
        try:
            self.monitor = ServiceMonitor(self._plan, self._node, service, self._restarts)
        except OSError as error:
            failure = Failure(f"`{service.name}` cannot be started: {error}", exitcode=1, time=time.time())
            return self._ended(failure, 1)
        return None

    def _end_if_silent(self) -> None:
        if not self.lives_apart:
            return  # the supervisor watches it
        recovery = self._plan.recovery
        limit = silence_allowed(self.monitor.has_answered, recovery.hang_timeout, self._plan.ready_timeout)
        if limit is not None and self.monitor.silent_for > limit:
            self.monitor.kill(f"was killed: no answer for {limit:g} s")

    def _end_leftovers(self) -> None:
        run_id, rank, name = self._plan.run_id, self._node.host.rank, self.monitor.service.name
        processes.end(lambda: processes.of_service(run_id, rank, name), _LEFTOVER_GRACE)
