"""The loop of `action=auto_tune`: propose a candidate, try it, learn from it, until no better one is left."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from flagscale.config.command import Request
from flagscale.errors import FlagScaleError
from flagscale.formats import bytes_text, count, duration, seconds_text
from flagscale.frozen import asdict
from flagscale.plan.prepare import Prepared, prepare
from flagscale.planner.tuning.propose import Candidate, Known, Limits, Proposal, propose
from flagscale.planner.tuning.space import Changes
from flagscale.planner.tuning.tried import key_of
from flagscale.run.machine import this_machine
from flagscale.run.state import ProcessId
from flagscale.runners.base import runner_of
from flagscale.tuning import history, report
from flagscale.tuning.begin import Say, Tuning, begin
from flagscale.tuning.command import newest_trial
from flagscale.tuning.figures import Prior, label, sizes_of
from flagscale.tuning.outcome import Outcome
from flagscale.tuning.picture import picture
from flagscale.tuning.requests import trial_request, winner_request
from flagscale.tuning.trial import StopRequested, end_trial, run_trial


@dataclass(frozen=True)
class Result:
    """How a tuning ended."""

    winner: Request | None
    """The job with the best arguments; None if no trial was measured."""
    reason: str
    is_stopped: bool = False
    """Whether another command has ended it before it was finished."""


def tune(request: Request, prepared: Prepared, say: Say) -> Result:
    """Tune a job that has passed all checks; `say` prints a line.

    Raises:
        UserError: the job or its space cannot be tuned.
        FlagScaleError: another tuner runs here, or the hosts are not ready.
    """
    tuning = begin(request, prepared, say)
    with tuning.files.held():
        return _tune(tuning)


def _tune(tuning: Tuning) -> Result:
    files, say = tuning.files, tuning.say
    files.stop_request.unlink(missing_ok=True)
    _end_interrupted(tuning)
    layouts = [one.changes for one in tuning.prior.candidates]
    used, notice = history.counted(files.entries(), tuning.conditions, layouts)
    tuning.entries += used
    say(_intro(tuning))
    for line in filter(None, (*tuning.prior.notices, notice)):
        say(f"note: {line}")
    if used:
        say(f"continues after {count(len(used), 'trial')} of an earlier command")
    try:
        while True:
            proposal = _next(tuning)
            if files.stop_request.exists():
                raise StopRequested  # nor does the winner start
            if proposal.candidate is None:
                if len(tuning.entries) == len(used) > 0:
                    say(f"no further trial is needed; to begin again, delete {files.history}")
                return _finish(tuning, proposal.why)
            _try(tuning, proposal)
    except StopRequested:
        files.stop_request.unlink(missing_ok=True)
        _record(tuning, "stopped", "action=stop", files.read_state().get("trial"))
        return Result(None, "stopped by action=stop; the same command continues", is_stopped=True)
    except BaseException as error:
        # With the trial, whose end may be what failed: the next tuner ends it again, which is harmless.
        with suppress(FlagScaleError):  # what has failed may be writing
            reason = "Ctrl-C" if isinstance(error, KeyboardInterrupt) else str(error) or type(error).__name__
            _record(tuning, "stopped", reason, files.read_state().get("trial"))
        raise


def _intro(tuning: Tuning) -> str:
    several = {name: one for name, one in tuning.space.choices.items() if len(one) > 1}
    return (
        f"{tuning.prepared.plan.name}: {len(tuning.prior.candidates)} legal candidates in "
        f"{len(several)} dimensions, {tuning.space.world_size} ranks; trials in {tuning.files.path}"
    )


def _end_interrupted(tuning: Tuning) -> None:
    """End the trial that was running when a tuner died here: exactly that one."""
    if number := newest_trial(tuning.files):
        rules, runner = runner_of(tuning.prepared.plan).rules, tuning.prepared.experiment.runner
        folder = tuning.files.trial(number).path
        is_recorded = any(one.get("number") == number for one in tuning.files.entries())
        if end_trial(rules.share(folder, runner.node_rank, os.environ).run_dir) and not is_recorded:
            tuning.say(f"trial {number} was interrupted; it is ended and will be repeated")


def _next(tuning: Tuning) -> Proposal:
    control, algo = tuning.keys.control, tuning.keys.algo
    passed = time.time() - tuning.started
    limits = Limits(
        seconds_left=None if control.max_time is None else control.max_time - passed,
        trials_left=None if control.max_trials is None else control.max_trials - len(tuning.entries),
        tries_all=algo.name == "grid",
        priority=algo.priority,
    )
    return propose(tuning.prior.candidates, history.tried_of(tuning.entries), tuning.known, limits)


def _try(tuning: Tuning, proposal: Proposal) -> None:
    candidate, known = proposal.candidate, tuning.known
    assert candidate is not None
    number, changes = tuning.files.next_number(), candidate.changes
    estimate = _estimate(candidate, known, tuning.prior)
    text = label(changes, tuning.space)
    trial = {"number": number, "changes": dict(changes), "label": text, "started": time.time(), **estimate}
    _record(tuning, "tuning", "", trial)
    expected = f"; expected {_figures(estimate)}" if estimate else ""
    tuning.say(f"trial {number}: {text} ({proposal.why}){expected}{_remaining(tuning, proposal.left)}")
    limit = tuning.keys.control.max_time_per_task * (1 if tuning.entries else 2)
    request = trial_request(
        tuning.request,
        changes,
        tuning.files.trial(number).path,
        tuning.keys.control.train_iters,
        tuning.batch,
    )
    begun = time.time()
    try:
        outcome = run_trial(request, limit, tuning.files.stop_request.exists, tuning.say)
    except BrokenPipeError:
        raise  # the reader of what is printed has gone
    except OSError as error:
        raise FlagScaleError(f"cannot write to {tuning.files.trial(number).path}: {error.strerror}") from None
    sizes = sizes_of(changes, tuning.space, tuning.batch)
    entry = history.entry_of(number, changes, outcome, estimate, tuning.conditions, begun, sizes)
    tuning.files.append(entry)
    tuning.entries.append(entry)
    tuning.say(f"trial {number}: {_shown(outcome, estimate, changes, tuning.best)}")
    tuning.files.write(tuning.files.table, history.table(tuning.entries))
    _record(tuning, "tuning", "")


def _estimate(candidate: Candidate, known: Known, prior: Prior) -> dict[str, float]:
    """Return what is expected of a trial; nothing if what is known only ranks."""
    if prior.is_nominal and not known.calibration:
        return {}
    reported = known.calibration.memory_bytes if known.calibration else 0.0
    memory = {"bytes": candidate.reported_bytes + reported} if candidate.reported_bytes else {}
    return {"seconds": known.seconds(candidate), **memory}


def _figures(estimate: Mapping[str, float]) -> str:
    parts = [seconds_text(estimate.get("seconds"))]
    parts += [bytes_text(estimate["bytes"])] if estimate.get("bytes") else []
    return ", ".join(parts)


def _remaining(tuning: Tuning, left: int) -> str:
    """Return how many trials may follow, and how long they take if they are like those before."""
    if not tuning.entries or not left:
        return ""
    control, each = tuning.keys.control, fmean(float(one["elapsed"]) for one in tuning.entries)
    if control.max_trials is not None:
        left = min(left, control.max_trials - len(tuning.entries))
    seconds = left * each
    if control.max_time is not None:
        seconds = min(seconds, control.max_time - (time.time() - tuning.started) + each)
    return f"; at most {count(left, 'trial')} left, {duration(max(0.0, seconds))}"


def _shown(
    outcome: Outcome, estimate: Mapping[str, float], changes: Changes, best: Mapping[str, Any] | None
) -> str:
    if outcome.state != "measured" or outcome.seconds is None:
        return f"{outcome.state}: {outcome.failure}"
    parts = [f"{seconds_text(outcome.seconds)} per step"]
    if expected := estimate.get("seconds"):
        parts.append(f"estimate {100 * (expected / outcome.seconds - 1):+.0f} %")
    parts += [bytes_text(outcome.nbytes)] if outcome.nbytes else []
    if best is not None and key_of(best["changes"]) == key_of(changes):
        mean = f", {seconds_text(best['seconds'])} in {best['repeated']} trials"
        parts.append(f"the best so far{mean if best['repeated'] > 1 else ''}")
    return ", ".join(parts)


def _record(tuning: Tuning, phase: str, reason: str, trial: Mapping[str, Any] | None = None) -> None:
    """Write what the tuner does now, for `query`, `stop` and the next tuner."""
    best = tuning.best
    tuning.files.write_state(
        {
            "phase": phase,
            "reason": reason,
            "process": asdict(ProcessId.of(os.getpid())),
            "machine": asdict(this_machine()),
            "started": tuning.started,
            "candidates": len(tuning.prior.candidates),
            "trials": len(tuning.entries),
            "tried": len({key_of(one["changes"]) for one in tuning.entries}),
            "trial": dict(trial) if trial else None,
            "best": {**best, "label": label(best["changes"], tuning.space)} if best else None,
        }
    )


def _finish(tuning: Tuning, reason: str) -> Result:
    files, best = tuning.files, tuning.best
    text = report.summary(tuning.entries, tuning.space, len(tuning.prior.candidates), reason)
    tuning.say(text)
    files.write(files.picture, picture(tuning.entries, tuning.space))
    files.write(files.report, report.page(text, files.picture.name))
    winner = None
    if best is not None:
        winner = winner_request(tuning.request, best["changes"])
        files.write(files.best, prepare(winner, "best", only_plans=True).config)
        took = duration(time.time() - tuning.started)
        mean = f"{seconds_text(best['seconds'])} per step in {count(best['repeated'], 'trial')}"
        tuning.say(
            f"best: trial {best['number']}, {label(best['changes'], tuning.space)}: {mean} (after {took})"
        )
        tuning.say(
            f"  configuration  {files.best}\n  trials         {files.table}\n  picture        {files.picture}"
        )
    _record(tuning, "ended", reason)
    if best is None and not tuning.entries:
        raise FlagScaleError(f"nothing was tried: {reason}")
    return Result(winner, reason)
