"""The supervisor: one process per host, in its own session, that runs this host's agent and ends with it.

It writes the host's state, ends the whole process tree on TERM, when the agent has ended, or when another
host's part has ended, and starts it again if the plan says so. A guard process ends the tree if the
supervisor itself is killed.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from flagscale.errors import FlagScaleError
from flagscale.linux import adopt_orphans
from flagscale.node.attempt import AttemptOutcome, HostAttempt
from flagscale.node.coordinator import Coordinator
from flagscale.node.guard import GuardKeeper
from flagscale.node.member import Member
from flagscale.node.record import StateRecord
from flagscale.node.rendezvous import Alone, Peers, Verdict
from flagscale.run.env import CHANNEL_SECRET
from flagscale.run.rundir import RunDir
from flagscale.run.state import Attempt, HostState, ProcessId
from flagscale.values import LaunchPlan, NodeCommand

_POLL = 0.1


class Supervisor:
    """Runs one host's share of a plan; `run` returns the agent's exit code (0 if stopped)."""

    def __init__(
        self,
        plan: LaunchPlan,
        node: NodeCommand,
        report: Callable[[HostState], None] = lambda state: None,
    ) -> None:
        """Prepare; `report` is called with the state in which the start has succeeded, and with the last."""
        self._plan, self._node, self._report = plan, node, report
        self._files = RunDir(Path(plan.exp_dir))
        self._stop_requested = False
        self._guard = GuardKeeper(plan, node)
        state = HostState(plan.run_id, "starting", ProcessId.of(os.getpid()), started=time.time())
        self._record = StateRecord(self._files.state(node.host), state)

    def begin(self) -> None:
        """Record the first state; the caller holds this host's lock."""
        self._record.write()

    def run(self) -> int:
        adopt_orphans()
        signal.signal(signal.SIGTERM, self._on_term)
        for ignored in (signal.SIGINT, signal.SIGHUP):
            # Not SIG_IGN, which the engine would inherit.
            signal.signal(ignored, lambda number, frame: None)
        try:
            os.chdir(self._node.cwd)
            self._keep_guard()
            secrets = self._secrets()
            peers = _peers(self._plan, self._node, secrets.pop(CHANNEL_SECRET, ""))
        except (FlagScaleError, OSError) as error:
            return self._finish(AttemptOutcome.failed(f"the job cannot be started: {error}"), Alone())
        try:
            return self._finish(self._attempts(peers, secrets), peers)
        finally:
            peers.close()

    def _attempts(self, peers: Peers, secrets: dict[str, str]) -> AttemptOutcome:
        """Run the job until it finishes, is stopped, or has failed too often."""
        recovery = self._plan.recovery
        number, restarts, patience = 0, 0, self._plan.start_timeout
        while True:
            begun = time.time()
            begin = peers.rendezvous(number, patience, self._is_stopped)
            if isinstance(begin, Verdict):
                if begin.kind == "stopped" and begin.host == self._node.host.rank:
                    peers.report(begin)
                return self._refused(begin)
            attempt = HostAttempt(
                self._plan,
                self._node,
                begin,
                peers,
                self._record,
                self._report,
                self._guard,
                self._is_stopped,
            )
            outcome = attempt.run(secrets)
            if outcome.failure is None or outcome.is_final:
                return outcome
            if restarts == recovery.max_restarts and not outcome.is_rollback:
                return outcome
            attempts = (*self._record.state.attempts, Attempt(number, begun, time.time(), outcome.failure))
            self._record.note(phase="starting", attempts=attempts, engine=None)
            number, patience = number + 1, recovery.restart_timeout
            print(f"flagscale: {outcome.failure.message}", flush=True)
            if outcome.is_rollback:
                continue
            restarts += 1
            pause = recovery.pause(restarts)
            print(f"flagscale: restart {restarts} of {recovery.max_restarts} in {pause:g} s", flush=True)
            self._pause(pause)

    def _refused(self, verdict: Verdict) -> AttemptOutcome:
        """Return the outcome of an attempt that never began."""
        if verdict.kind == "stopped":
            return AttemptOutcome("stopped", 0)
        return AttemptOutcome.failed(verdict.text, verdict.host != self._node.host.rank)

    def _is_stopped(self) -> bool:
        """Return whether a stop was requested; keep the guard running meanwhile."""
        self._keep_guard()
        return self._stop_requested

    def _pause(self, seconds: float) -> None:
        """Wait before the next attempt, unless a stop is requested."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stop_requested:
            time.sleep(_POLL)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self._stop_requested = True

    def _secrets(self) -> dict[str, str]:
        path = self._files.secrets(self._node.host)
        try:
            secrets: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        path.unlink()
        return secrets

    def _keep_guard(self) -> None:
        if new := self._guard.keep():
            self._record.state = self._record.state.changed(guard=new)
            if self._record.state.phase != "starting":
                self._record.note()

    def _finish(self, outcome: AttemptOutcome, peers: Peers) -> int:
        is_recorded = self._record.note(
            phase=outcome.phase,
            exit_code=outcome.exit_code,
            failure=outcome.failure,
            ended=time.time(),
            # A stop need not come to this host, unless it is the first one.
            is_tidied=outcome.confirm_until is not None and self._node.host != self._plan.hosts[0],
        )
        self._guard.end()
        self._report(self._record.state)
        if outcome.confirm_until is not None and is_recorded:
            self._confirm_end(peers, outcome.confirm_until)
        return 0 if outcome.phase == "stopped" else outcome.exit_code

    def _confirm_end(self, peers: Peers, until: float) -> None:
        """Confirm that nothing is left; on the first host, record which other hosts have done so."""
        try:
            self._files.secrets(self._node.host).unlink(missing_ok=True)
        except OSError as error:
            print(f"flagscale: cannot remove the secrets of the run: {error}", flush=True)
        else:
            if others := peers.confirm_end(until):
                self._record.note(ended_with=others)


def _peers(plan: LaunchPlan, node: NodeCommand, secret: str) -> Peers:
    """Return the connection to the other hosts.

    Raises:
        OSError: the first host's supervisor cannot listen.
        FlagScaleError: the secret of the run is missing, without which anyone could impersonate its hosts.
    """
    if plan.channel is None:
        return Alone()
    if not secret:
        raise FlagScaleError("the secret of the run is missing; start the job with action=run")
    address, port, key = plan.channel.address, plan.channel.port, secret.encode()
    names = {host.rank: host.name for host in plan.hosts}
    if node.host.rank == min(names):
        return Coordinator(address, port, key, names, plan.recovery.fewer_hosts)
    return Member(address, port, key, node.host.rank, names[min(names)])
