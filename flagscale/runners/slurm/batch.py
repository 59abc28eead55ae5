"""The program in a job that was submitted: it starts the job's ranks as inside any allocation, and waits.

It replaces the batch script's shell, so Slurm's signals reach it: USR1 before the time limit, TERM when the
job is cancelled or its hosts are taken. The supervisors then let the ranks save; afterwards the job is put in
the queue again if its user wants that.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from flagscale.config.command import Request
from flagscale.config.schema import SlurmJob
from flagscale.config.source_map import index_sources
from flagscale.errors import FlagScaleError, UserError
from flagscale.files import locked
from flagscale.remote import launcher
from flagscale.run.rundir import RunDir
from flagscale.run.state import ENDED
from flagscale.runners.slurm import hidden, ledger
from flagscale.runners.slurm.allocation import Allocation, allocation
from flagscale.runners.slurm.commands import SlurmError, SlurmRefused, call
from flagscale.runners.slurm.ledger import Begin, Ledger
from flagscale.runners.slurm.records import ask_job
from flagscale.runners.slurm.report import host_states
from flagscale.runners.slurm.requeue import Decision, Ended, decide, failures_of
from flagscale.runners.slurm.step import Step, end_step, start_step, wait_started
from flagscale.runners.slurm.submit import new_ledger
from flagscale.values import LaunchPlan

if TYPE_CHECKING:
    from flagscale.plan.prepare import Prepared
    from flagscale.remote.launcher import HostStatus

_POLL = 0.2
_HEARING = 2.0
_ATTEMPTS = 10
_SILENT = 30.0
"""Seconds after the first end of a host after which a host that reports no end of its own is lost."""


class Signals:
    """The signals that Slurm has sent to this program."""

    def __init__(self) -> None:
        self.is_at_limit = self.is_terminated = False
        signal.signal(signal.SIGUSR1, self._on_limit)
        signal.signal(signal.SIGTERM, self._on_term)

    def _on_limit(self, number: int, frame: FrameType | None) -> None:
        self.is_at_limit = True

    def _on_term(self, number: int, frame: FrameType | None) -> None:
        self.is_terminated = True


def main(exp_dir: str) -> int:
    """Run one begin of the job of a run directory; return the exit code of the job."""
    signals = Signals()
    run_dir = RunDir(Path(exp_dir))
    here = allocation(os.environ)
    try:
        if here is None:
            raise FlagScaleError("this program runs in a job of Slurm only; start the job with action=run")
        known = _own_record(run_dir, here)
        return _OneBegin(run_dir, here, known, signals).run()
    except UserError as error:
        print(f"error: the configuration has mistakes on this host:\n{error}", file=sys.stderr)
        return error.exit_code
    except FlagScaleError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code


def _own_record(run_dir: RunDir, here: Allocation) -> Ledger:
    """Return the record of this job, once the command that submitted it has written it.

    Raises:
        FlagScaleError: the run directory belongs to another job by now.
    """
    with locked(run_dir.path / ".lock"):
        known, plan = ledger.read(run_dir), run_dir.read_plan()
        if known and known.job_id == here.job_id:
            return known
        name = os.environ.get("SLURM_JOB_NAME", "")
        if plan is None or plan.run_id != name:
            other = f"job {known.job_id}" if known else "no job"
            raise FlagScaleError(f"job {here.job_id} ({name}) ends: {run_dir.path} is that of {other}")
        # The command was killed after the submission.
        ledger.record_job(run_dir, new_ledger(plan, here.job_id, os.environ.get("SLURM_CLUSTER_NAME", "")))
        recorded = ledger.read(run_dir)
        assert recorded
        return recorded


class _OneBegin:
    """One begin of a job."""

    def __init__(self, run_dir: RunDir, here: Allocation, known: Ledger, signals: Signals) -> None:
        self._run_dir, self._here, self._known, self._signals = run_dir, here, known, signals
        self._run_id = known.name if here.restarts == 0 else f"{known.name}-r{here.restarts}"
        self._failures = 0
        """The failed attempts of earlier begins."""
        self._max_restarts = 0

    def run(self) -> int:
        if self._known.stop_requested:
            return 0  # it was requested while the job waited to begin again
        for begin in self._known.own_begins:
            if not begin.end:
                why = "its first host was lost, or the job's program was killed"
                self._known = ledger.record_end(self._run_dir, begin.run_id, "node lost", why, failures=1)
        self._failures = failures_of(self._known.own_begins)
        names = tuple(host.name for host in self._here.hosts)
        begin = Begin(self._here.job_id, self._here.restarts, self._run_id, names, time.time())
        self._known = ledger.record_begin(self._run_dir, begin)
        try:
            prepared = self._prepared()
            plan, step = self._start(prepared)
        except BaseException as error:
            self._give_up(str(error))
            raise
        states = self._wait(plan, step)
        return self._finish(states)

    def _prepared(self) -> Prepared:
        """Return the job that was submitted, on the hosts of this allocation."""
        from flagscale.plan.prepare import prepare

        config = OmegaConf.load(self._run_dir.config)
        assert isinstance(config, DictConfig)
        hidden.restore(self._run_dir, config)
        runner = config.experiment.runner
        self._max_restarts = int(runner.get("max_restarts", 0))
        if self._failures > self._max_restarts:
            raise FlagScaleError(
                f"the job does not begin again: it failed {self._failures} times, and experiment.runner."
                f"max_restarts is {self._max_restarts}"
            )
        runner.max_restarts = self._max_restarts - self._failures
        source_map = index_sources([(self._run_dir.config, "")])
        return prepare(Request(config, source_map), self._run_id)

    def _start(self, prepared: Prepared) -> tuple[LaunchPlan, Step]:
        """Start the ranks on all hosts, or on none of them."""
        from flagscale.plan.placement import secrets
        from flagscale.plan.render import scripts
        from flagscale.runners.base import runner_of

        plan = runner_of(prepared.plan).require(prepared)
        own = launcher.with_channel_secret(plan, secrets(prepared.job, prepared.experiment))
        config = self._run_dir.config.read_text(encoding="utf-8")  # as it was submitted
        try:
            with launcher.recorded(plan, scripts(plan), config, own, lambda earlier: ("", ())):
                step = start_step(plan, self._here)
                wait_started(plan, step)
        finally:
            self._run_dir.forget_secrets(plan.hosts)
        return plan, step

    def _give_up(self, why: str) -> None:
        """Record that the ranks did not start, because of a mistake, or because Slurm ends the job."""
        is_requeued = False
        if self._signals.is_terminated:
            ended = self._ended(())
            is_requeued = ended.is_requeued
            self._record(ended)
        else:
            ledger.record_end(self._run_dir, self._run_id, "failed", why, failures=1)
        if not is_requeued:
            hidden.forget(self._run_dir)

    def _wait(self, plan: LaunchPlan, step: Step) -> Sequence[HostStatus]:
        """Wait until all hosts have ended, or cannot; end them when the time limit comes."""
        is_ending, is_noted, first_end = False, False, None
        while True:
            states = host_states(self._run_dir, plan)
            ended = [host for host in states if host.state and host.state.phase in ENDED]
            if len(ended) == len(states):
                return states
            if step.poll() is not None:
                return host_states(self._run_dir, plan)
            if self._signals.is_terminated and not is_noted:
                # Now, because Slurm may kill this program before the ranks have ended.
                is_noted = True
                self._record(self._ended(()))
            if self._signals.is_at_limit and not (is_ending or self._signals.is_terminated):
                is_ending = True
                print("the time limit comes: the ranks save and end", flush=True)
                end_step(self._here.job_id, plan.run_id)
            first_end = first_end or (time.monotonic() if ended else None)
            if first_end and time.monotonic() - first_end > _SILENT + _longest(plan):
                return states
            time.sleep(_POLL)

    def _finish(self, states: Sequence[HostStatus]) -> int:
        """Record how the begin ended, and put the job in the queue again if it has to begin again."""
        if not all(host.state and host.state.phase == "finished" for host in states):
            self._let_slurm_speak()
        ended = self._ended(states)
        decision = self._record(ended)
        print(f"{self._run_id}: {decision.end}{decision.reason and f': {decision.reason}'}", flush=True)
        if decision.requeues:
            self._requeue(decision)
        elif not ended.is_requeued:
            hidden.forget(self._run_dir)
        codes = [host.state.exit_code for host in states if host.state and host.state.exit_code]
        return next((code for code in codes if code > 0), 0 if decision.end in ("finished", "stopped") else 1)

    def _let_slurm_speak(self) -> None:
        """Wait a moment for TERM: if Slurm ends the job, the ranks may hear of it before this program."""
        deadline = time.monotonic() + _HEARING
        while time.monotonic() < deadline and not (self._signals.is_terminated or self._signals.is_at_limit):
            time.sleep(_POLL)

    def _record(self, ended: Ended) -> Decision:
        decision = decide(ended, self._known.requeues, self._failures, self._max_restarts)
        ledger.record_end(self._run_dir, self._run_id, decision.end, decision.reason, failures=ended.failures)
        return decision

    def _ended(self, states: Sequence[HostStatus]) -> Ended:
        """Return how this begin has ended; without states, how it is about to end."""
        known = ledger.read(self._run_dir)
        found = [host.state for host in states if host.state]
        failed = [state.failure for state in found if state.failure]
        cause = next((one for one in failed if not one.is_victim), failed[0] if failed else None)
        attempts = max((len(state.attempts) for state in found), default=0)
        lost = [host.host.name for host in states if not (host.state and host.state.phase in ENDED)]
        is_requeued, down = self._fate() if self._signals.is_terminated or lost else (False, ())
        # A restart that waited in vain for a lost host is no failure of its own.
        has_failed = not attempts if lost else any(state.phase == "failed" for state in found)
        return Ended(
            phases=tuple(state.phase for state in found),
            failures=attempts + has_failed,
            why=cause.message if cause else "",
            lost=tuple(lost) if len(lost) < len(states) else (),
            is_at_limit=self._signals.is_at_limit,
            is_terminated=self._signals.is_terminated,
            is_requeued=is_requeued,
            down=down,
            stop_requested=known is not None and known.stop_requested is not None,
        )

    def _fate(self) -> tuple[bool, tuple[str, ...]]:
        """Return whether Slurm has put the job in the queue again, and which of its hosts are down."""
        try:
            record = ask_job(self._here.job_id)
            names = ",".join(host.name for host in self._here.hosts)
            printed = call("sinfo", "--noheader", "--Node", f"--nodes={names}", "--format=%N %T")
        except SlurmError as error:
            print(f"note: {error}", file=sys.stderr)
            return False, ()
        states = dict(line.split()[:2] for line in printed.splitlines() if line.strip())
        down = tuple(name for name, state in states.items() if state.startswith("down") or "*" in state)
        return record is not None and record.restarts > self._here.restarts, down

    def _requeue(self, decision: Decision) -> None:
        """Put the job in the queue again; Slurm then waits for about two minutes."""
        job = self._here.job_id
        known = ledger.exclude(self._run_dir, decision.excluded)
        with suppress(_Killed):
            _scontrol("requeue", job)
        if decision.excluded:
            plan = self._run_dir.read_plan()
            own = SlurmJob.model_validate(plan.slurm).options().get("exclude", "") if plan else ""
            names = ",".join(filter(None, [own, *known.excluded]))
            # Slurm refuses this before the requeue.
            for _ in range(_ATTEMPTS):
                with suppress(_Killed):
                    _scontrol("update", f"JobId={job}", f"ExcNodeList={names}")
                    return


class _Killed(Exception):
    """The TERM that Slurm sends when it requeues a job has reached another program of the job."""


def _scontrol(*words: str) -> None:
    """Raises SlurmError if Slurm does not do it, _Killed if the program was killed before it could tell."""
    try:
        call("scontrol", *words)
    except SlurmRefused as refused:
        if refused.words:
            raise
        raise _Killed from None


def _longest(plan: LaunchPlan) -> float:
    return max(node.stop_grace for node in plan.nodes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
