"""One attempt on this host: its agent runs until it ends by itself or must end, and nothing is left of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import psutil

from flagscale.errors import RollBackError, UserError
from flagscale.frozen import dataclass, replace
from flagscale.linux import may_have_descendants, oom_kills, reap_adopted
from flagscale.node import processes
from flagscale.node.agent import Heartbeat, end_agent, start_agent, time_to_end, write_stacks
from flagscale.node.guard import GuardKeeper
from flagscale.node.record import StateRecord
from flagscale.node.rendezvous import AttemptStart, Peers, Verdict
from flagscale.run.failure import Failure, first_failure
from flagscale.run.logs import has_error
from flagscale.run.rundir import RunDir
from flagscale.run.state import HostState, Phase, ProcessId
from flagscale.values import LaunchPlan, NodeCommand

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
    is_rollback: bool = False
    """Whether the ranks ended to start again from a checkpoint: not a failure, so it does not count as a
    restart. The ranks themselves limit how often they do so."""
    confirm_until: float | None = None
    """Set if a stop of the first host has ended the others with it, and nothing is left on this one: the time
    (`time.monotonic`) by which all of them should have confirmed this to the first host."""

    @staticmethod
    def failed(message: str, is_victim: bool = False) -> AttemptOutcome:
        return AttemptOutcome("failed", 1, Failure(message, time=time.time(), is_victim=is_victim))


class HostAttempt:
    """This host's part in an attempt that begins on all of its hosts now.

    Args:
        report: called with the state in which the agent runs.
        is_stopped: returns whether a stop was requested; called often, and also keeps the guard running.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        node: NodeCommand,
        begin: AttemptStart,
        peers: Peers,
        record: StateRecord,
        report: Callable[[HostState], None],
        guard: GuardKeeper,
        is_stopped: Callable[[], bool],
    ) -> None:
        self._plan, self._node, self._begin, self._peers = plan, node, begin, peers
        self._record, self._report, self._guard, self._is_stopped = record, report, guard, is_stopped

    def run(self, secrets: Mapping[str, str]) -> AttemptOutcome:
        """Run this host's agent; none of its processes is left when this returns."""
        kills, limit = oom_kills(), self._plan.recovery.hang_timeout
        # Before the agent starts: the first heartbeat must be a change.
        heartbeat = Heartbeat(RunDir(Path(self._plan.exp_dir)).heartbeat(self._node.host), limit)
        try:
            agent = start_agent(self._node, self._begin, self._plan.channel, secrets)
            self._record.write(phase="running", engine=ProcessId.of(agent.pid), members=self._begin.hosts)
            self._report(self._record.state)
        except (OSError, ValueError) as error:
            self._end_leftovers()
            why = f"the engine cannot be started: {error}"
            self._peers.report(self._verdict("failed", why))  # another attempt may not need this host
            return replace(AttemptOutcome.failed(why), is_final=True)
        verdict = self._watch(agent, heartbeat)
        if verdict is None:
            return self._ended_by_itself(agent, kills)
        begun = time.monotonic()
        if verdict.host == self._node.host.rank:
            self._peers.report(verdict)
        if verdict.kind == "stopped":
            self._record.note(phase="stopping")
            end_agent(agent, time_to_end(self._node))
        elif verdict.kind == "hung":
            write_stacks(agent)
        is_clean = self._end_leftovers(agent)
        if verdict.kind == "stopped":
            outcome = AttemptOutcome("stopped", _exit_code(agent))
            if not (is_clean and self._plan.stops_together and verdict.host == self._plan.hosts[0].rank):
                return outcome
            longest = max(map(time_to_end, self._plan.nodes))
            return replace(outcome, confirm_until=begun + longest + _CONFIRMING)
        is_victim = verdict.host != self._node.host.rank
        why = f"ended because of {verdict.text}" if is_victim else verdict.text
        outcome = AttemptOutcome.failed(why, is_victim)
        return replace(outcome, is_final=verdict.is_final, is_rollback=verdict.is_rollback)

    def _ended_by_itself(self, agent: subprocess.Popen[bytes], kills: int) -> AttemptOutcome:
        code = _exit_code(agent)
        if code == 0:
            self._peers.report(self._verdict("finished", "finished"))
            self._end_leftovers(agent)
            return AttemptOutcome("finished", 0)
        failure = first_failure(self._plan, self._node, code, oom_kills() > kills)
        who = "" if failure.rank is None else f"rank {failure.rank}: "
        # Restarting cannot fix a mistake of the user.
        is_final = failure.is_final or failure.exitcode == UserError.exit_code
        is_rollback = failure.exitcode == RollBackError.exit_code
        verdict = self._verdict("failed", f"{who}{failure.message}", is_final)
        self._peers.report(replace(verdict, is_rollback=is_rollback))
        self._end_leftovers(agent)
        return AttemptOutcome("failed", code, failure, is_final, is_rollback)

    def _watch(self, agent: subprocess.Popen[bytes], heartbeat: Heartbeat) -> Verdict | None:
        """Return the verdict that ends the attempt; None if the agent ended on its own."""
        while agent.poll() is None:
            if self._is_stopped():
                return self._verdict("stopped", "it was stopped")
            if (verdict := self._peers.verdict()) and not self._explains_itself(agent, verdict):
                return verdict
            if heartbeat.is_overdue():
                what = "answer" if self._node.services else "iteration"
                return self._verdict("hung", f"no {what} for {self._plan.recovery.hang_timeout:g} s")
            reap_adopted({agent.pid, self._guard.pid})
            self._peers.wait(_POLL)
        # If a stop found no readable state, it has signalled all processes at once.
        return self._verdict("stopped", "it was stopped") if self._is_stopped() else None

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
        kind: Literal["failed", "hung", "stopped", "finished"],
        text: str,
        is_final: bool = False,
    ) -> Verdict:
        host = self._node.host
        return Verdict(self._begin.attempt, kind, host.rank, f"{host.name}: {text}", is_final)

    def _end_leftovers(self, agent: subprocess.Popen[bytes] | None = None) -> bool:
        """End all that is left of the run on this host; return whether that succeeded."""
        guard = self._guard.pid

        def leftovers() -> set[psutil.Process]:
            found = processes.of_run(self._plan.run_id, self._node.host.rank, os.getpid())
            return {process for process in found if process.pid != guard}

        def may_miss() -> bool:
            # As this process adopts orphans, whatever the agent has started descends from it.
            if agent:
                agent.poll()
            reap_adopted({guard, agent.pid} if agent else {guard})
            return may_have_descendants({guard})

        return not processes.end(leftovers, _LEFTOVER_GRACE, may_miss)


def _exit_code(agent: subprocess.Popen[bytes]) -> int:
    code = agent.poll()
    return -signal.SIGKILL if code is None else code  # None: stuck in the kernel
