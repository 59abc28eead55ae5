"""The supervisor: one process per host, in its own session, that runs this host's agent and ends with it.

It writes the host's state, ends the whole process tree on TERM, when the agent has ended, or when another
host's part has ended, and starts it again if the plan says so. A guard process ends the tree if the
supervisor itself is killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Literal

from flagscale.errors import FlagScaleError, UserError
from flagscale.frozen import dataclass, replace
from flagscale.linux import adopt_orphans, oom_kills, reap_adopted
from flagscale.node.agent import Heartbeat, end_agent, start_agent, time_to_end, write_stacks
from flagscale.node.coordinator import Coordinator
from flagscale.node.guard import GuardKeeper
from flagscale.node.member import Member
from flagscale.node.rendezvous import Alone, AttemptStart, Peers, Verdict
from flagscale.run.env import CHANNEL_SECRET
from flagscale.run.failure import Failure, first_failure
from flagscale.run.logs import has_error
from flagscale.run.rundir import RunDir
from flagscale.run.state import Attempt, HostState, Phase, ProcessId
from flagscale.values import LaunchPlan, NodeCommand

if TYPE_CHECKING:
    import psutil

_POLL = 0.1
_LEFTOVER_GRACE = 2.0
"""Grace, in seconds, for remaining processes of a run after its agent has ended."""
_CONFIRMING = 5.0
"""Seconds that all hosts have to confirm a stop, in addition to those that their agents may take."""
_EXPLAINING = 5.0
"""Seconds that an agent has to end after one of its ranks has failed; it ends the other ranks first."""


@dataclass(frozen=True)
class AttemptOutcome:
    """How an attempt ended on this host."""

    phase: Phase
    exit_code: int
    failure: Failure | None = None
    is_final: bool = False
    """Whether another attempt would end in the same way."""
    confirm_until: float | None = None
    """Set if a stop of the first host has ended the others with it, and nothing is left on this one: the time
    (`time.monotonic`) by which all of them should have confirmed this to the first host."""


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
        self._state = HostState(plan.run_id, "starting", ProcessId.of(os.getpid()), started=time.time())

    def begin(self) -> None:
        """Record the first state; the caller holds this host's lock."""
        self._record()

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
            return self._finish(_failed(f"the job cannot be started: {error}"), Alone())
        try:
            return self._finish(self._attempts(peers, secrets), peers)
        finally:
            peers.close()

    def _attempts(self, peers: Peers, secrets: dict[str, str]) -> AttemptOutcome:
        """Run the job until it finishes, is stopped, or has failed too often."""
        recovery = self._plan.recovery
        number, patience = 0, self._plan.start_timeout
        while True:
            begun = time.time()
            begin = peers.rendezvous(number, patience, self._is_over)
            if isinstance(begin, Verdict):
                if begin.kind == "stopped" and begin.host == self._node.host.rank:
                    peers.report(begin)
                return self._refused(begin)
            outcome = self._attempt(begin, peers, secrets)
            if outcome.failure is None or outcome.is_final or number == recovery.max_restarts:
                return outcome
            attempts = (*self._state.attempts, Attempt(number, begun, time.time(), outcome.failure))
            self._note(phase="starting", attempts=attempts, engine=None)
            number, patience = number + 1, recovery.restart_timeout
            pause = recovery.pause(number)
            print(f"flagscale: {outcome.failure.message}", flush=True)
            print(f"flagscale: restart {number} of {recovery.max_restarts} in {pause:g} s", flush=True)
            self._pause(pause)

    def _attempt(self, begin: AttemptStart, peers: Peers, secrets: dict[str, str]) -> AttemptOutcome:
        """Run this host's agent once; none of its processes is left when this returns."""
        kills = oom_kills()
        try:
            agent = start_agent(self._node, begin, self._plan.channel, secrets)
            self._record(phase="running", engine=ProcessId.of(agent.pid), members=begin.hosts)
            self._report(self._state)
        except (OSError, ValueError) as error:
            self._end_leftovers()
            why = f"the engine cannot be started: {error}"
            peers.report(self._verdict(begin, "failed", why))  # another attempt may not need this host
            return replace(_failed(why), is_final=True)
        self._prepare_to_end()
        verdict = self._watch(agent, begin, peers)
        if verdict is None:
            return self._ended_by_itself(agent, begin, peers, kills)
        begun = time.monotonic()
        if verdict.host == self._node.host.rank:
            peers.report(verdict)
        if verdict.kind == "stopped":
            self._note(phase="stopping")
            end_agent(agent, time_to_end(self._node))
        elif verdict.kind == "hung":
            write_stacks(agent)
        is_clean = self._end_leftovers()
        if verdict.kind == "stopped":
            outcome = AttemptOutcome("stopped", _exit_code(agent))
            if not (is_clean and self._plan.stops_together and verdict.host == self._plan.hosts[0].rank):
                return outcome
            longest = max(map(time_to_end, self._plan.nodes))
            return replace(outcome, confirm_until=begun + longest + _CONFIRMING)
        is_victim = verdict.host != self._node.host.rank
        outcome = _failed(f"ended because of {verdict.text}" if is_victim else verdict.text, is_victim)
        return replace(outcome, is_final=verdict.is_final)

    def _ended_by_itself(
        self, agent: subprocess.Popen[bytes], begin: AttemptStart, peers: Peers, kills: int
    ) -> AttemptOutcome:
        code = _exit_code(agent)
        if code == 0:
            peers.report(self._verdict(begin, "finished", "finished"))
            self._end_leftovers()
            return AttemptOutcome("finished", 0)
        failure = first_failure(self._plan, self._node, code, oom_kills() > kills)
        who = "" if failure.rank is None else f"rank {failure.rank}: "
        # Restarting cannot fix a mistake of the user.
        is_final = failure.is_final or failure.exitcode == UserError.exit_code
        peers.report(self._verdict(begin, "failed", f"{who}{failure.message}", is_final))
        self._end_leftovers()
        return AttemptOutcome("failed", code, failure, is_final)

    def _watch(self, agent: subprocess.Popen[bytes], begin: AttemptStart, peers: Peers) -> Verdict | None:
        """Return the verdict that ends the attempt; None if the agent ended on its own."""
        limit = self._plan.recovery.hang_timeout
        heartbeat = Heartbeat(self._files.heartbeat(self._node.host), limit)
        while agent.poll() is None:
            if self._stop_requested:
                return self._verdict(begin, "stopped", "it was stopped")
            if (verdict := peers.verdict()) and not self._explains_itself(agent, verdict):
                return verdict
            if heartbeat.is_overdue():
                what = "answer" if self._node.services else "iteration"
                return self._verdict(begin, "hung", f"no {what} for {limit:g} s")
            self._keep_guard()
            reap_adopted({agent.pid, self._guard.pid})
            peers.wait(_POLL)
        # If a stop found no readable state, it has signalled all processes at once.
        return self._verdict(begin, "stopped", "it was stopped") if self._stop_requested else None

    def _explains_itself(self, agent: subprocess.Popen[bytes], verdict: Verdict) -> bool:
        """Return whether a rank of this host has failed as well, and the agent has ended to report it.

        A rank that loses its peer fails within milliseconds, and its host's verdict may arrive first.
        """
        if verdict.kind != "failed" or not has_error(self._node):
            return False
        try:
            agent.wait(_EXPLAINING)
            return True
        except subprocess.TimeoutExpired:
            return False

    def _verdict(
        self,
        begin: AttemptStart,
        kind: Literal["failed", "hung", "stopped", "finished"],
        text: str,
        is_final: bool = False,
    ) -> Verdict:
        host = self._node.host
        return Verdict(begin.attempt, kind, host.rank, f"{host.name}: {text}", is_final)

    def _refused(self, verdict: Verdict) -> AttemptOutcome:
        """Return the outcome of an attempt that never began."""
        if verdict.kind == "stopped":
            return AttemptOutcome("stopped", 0)
        return _failed(verdict.text, verdict.host != self._node.host.rank)

    def _is_over(self) -> bool:
        """Return whether to stop waiting for the other hosts; keep the guard alive meanwhile."""
        self._keep_guard()
        return self._stop_requested

    def _pause(self, seconds: float) -> None:
        """Wait before the next attempt, unless a stop is requested."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self._stop_requested:
            time.sleep(_POLL)

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self._stop_requested = True

    def _record(self, **values: object) -> None:
        self._state = self._state.changed(**values)
        self._state.write(self._files.state(self._node.host))

    def _note(self, **values: object) -> bool:
        """Record a change after a confirmed start, if that is possible; a full disk must not end a job."""
        try:
            self._record(**values)
        except OSError as error:
            print(f"flagscale: cannot write the state of the run: {error}", flush=True)
            return False
        return True

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
            self._state = self._state.changed(guard=new)
            if self._state.phase != "starting":
                self._note()

    def _prepare_to_end(self) -> None:
        """Load what ends processes, here and in the guard, which a start does without.

        Not later: when it is needed, the file system that holds it may be gone.
        """
        from flagscale.node import processes  # noqa: F401

        self._guard.prepare()

    def _end_leftovers(self) -> bool:
        """End all that is left of the run on this host; return whether that succeeded."""
        from flagscale.node import processes

        def leftovers() -> set[psutil.Process]:
            found = processes.of_run(self._plan.run_id, self._node.host.rank, os.getpid())
            return {process for process in found if process.pid != self._guard.pid}

        return not processes.end(leftovers, _LEFTOVER_GRACE)

    def _finish(self, outcome: AttemptOutcome, peers: Peers) -> int:
        is_recorded = self._note(
            phase=outcome.phase,
            exit_code=outcome.exit_code,
            failure=outcome.failure,
            ended=time.time(),
            # A stop need not come to this host, unless it is the first one.
            is_tidied=outcome.confirm_until is not None and self._node.host != self._plan.hosts[0],
        )
        self._guard.end()
        self._report(self._state)
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
                self._note(ended_with=others)


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


def _failed(message: str, is_victim: bool = False) -> AttemptOutcome:
    return AttemptOutcome("failed", 1, Failure(message, time=time.time(), is_victim=is_victim))


def _exit_code(agent: subprocess.Popen[bytes]) -> int:
    code = agent.poll()
    return -signal.SIGKILL if code is None else code  # None: stuck in the kernel
