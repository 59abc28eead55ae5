"""Which candidate a tuner tries next, or why it stops: decided from estimates and what trials have shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flagscale.frozen import dataclass, field
from flagscale.planner.calibration import Calibration
from flagscale.planner.tuning.residuals import Residuals
from flagscale.planner.tuning.space import (
    DISTRIBUTED,
    GRANULARITY,
    LAYERS,
    METHOD,
    MICRO,
    SEQUENCE,
    Changes,
)
from flagscale.planner.tuning.tried import TRIALS_EACH, Tried, contenders, key_of, standings, to_repeat


@dataclass(frozen=True)
class Candidate:
    """A legal change of the job, with what is expected of it before anything was measured."""

    changes: Changes
    seconds: float
    """Per step; without an estimate, a figure that only ranks."""
    nbytes: float = 0.0
    """On the fullest device; 0: unknown."""
    reported_bytes: float = 0.0
    """Allocated by the rank that reports its memory (the last one), which a trial is compared with."""
    features: tuple[float, ...] = ()
    """Features that errors of estimates depend on; see `residuals`."""
    memory_factor: float = 1.0
    """The 95 % side of the published error of memory: an estimate times this is rarely exceeded."""


@dataclass(frozen=True)
class Known:
    """The knowledge of a tuning, besides the candidates."""

    calibration: Calibration | None = None
    """The constants refitted to the trials; None before the first one."""
    residuals: Residuals | None = None
    """The errors that remain, as trials have shown; None before the first one."""
    capacity: float = 0.0
    """Bytes that a process can use on a device; 0: unknown, and nothing is dropped for its size."""

    def seconds(self, candidate: Candidate) -> float:
        """Return the time per step that is expected now."""
        if not self.calibration or not self.residuals:
            return candidate.seconds
        return self.calibration.seconds(candidate.seconds) * self.residuals.factor(candidate.features)

    def lowest(self, candidate: Candidate) -> float:
        """Return the least time per step that is to be expected now, with 95 %; 0 before the first trial."""
        if not self.calibration or not self.residuals:
            return 0.0
        return self.calibration.seconds(candidate.seconds) * self.residuals.low_factor(candidate.features)

    def nbytes(self, candidate: Candidate) -> float:
        """Return the memory of the fullest device that is expected now; 0 if it is unknown."""
        if not candidate.nbytes or not self.calibration:
            return candidate.nbytes
        return self.calibration.nbytes(candidate.nbytes)


@dataclass(frozen=True)
class Limits:
    """When to stop although candidates are left."""

    seconds_left: float | None = None
    trials_left: int | None = None
    tries_all: bool = False
    """Whether every candidate is tried, whatever the estimates say (`algo.name: grid`)."""
    priority: str | None = None
    """With `tries_all`: memory (least first), performance (fastest first), or None (the order given)."""


@dataclass(frozen=True)
class Proposal:
    """The next candidate to try; None if the search is over, with the reason."""

    candidate: Candidate | None
    why: str
    dropped: Mapping[str, int] = field(default_factory=dict)
    """How many untried candidates are left out, by reason."""
    left: int = 0
    """How many candidates, this one included, may still be tried by what is known now."""


FAILURES = 3
"""As many trials that fail in the same way, with nothing measured, end the search."""


def propose(
    candidates: Sequence[Candidate], tried: Sequence[Tried], known: Known, limits: Limits
) -> Proposal:
    """Return the candidate to try next, or the reason to stop.

    At the end of the search, the fastest are tried again as long as they cannot be told apart.
    """
    found = _untried(candidates, tried, known, limits)
    again = to_repeat(fastest := standings(tried))
    if again is None or _spent(limits):
        return found
    trials = limits.trials_left
    if found.candidate and (trials is None or trials > min(_KEPT, (trials + len(tried)) // _KEPT_PART)):
        return found
    close = contenders(fastest)
    key = key_of(again.changes)
    why = f"again: the {len(close)} fastest cannot be told apart yet"
    left = sum(TRIALS_EACH - one.trials for one in close)
    return Proposal(next(one for one in candidates if key_of(one.changes) == key), why, found.dropped, left)


_KEPT, _KEPT_PART = 3, 4
"""Of the trials that `max_trials` allows, up to three (a quarter) are kept for repetitions at the end."""


def _untried(
    candidates: Sequence[Candidate], tried: Sequence[Tried], known: Known, limits: Limits
) -> Proposal:
    """Return the candidate to try for the first time, or why there is none."""
    measured = [one for one in tried if one.seconds is not None]
    best = min((one.seconds for one in standings(tried)), default=None)
    done = {key_of(one.changes) for one in tried}
    untried = [one for one in candidates if key_of(one.changes) not in done]
    too_large = [one.changes for one in tried if one.is_out_of_memory]
    fitting, dropped = _fitting(untried, too_large, known)
    if not untried:
        return Proposal(None, "every candidate has been tried", dropped)
    if not fitting:
        return Proposal(None, "no other candidate fits into the memory of a device", dropped)
    if spent := _spent(limits):
        return Proposal(None, spent, dropped)
    if not measured and (same := _repeated(tried)):
        return Proposal(None, f"{FAILURES} trials have failed in the same way: {same}", dropped)
    if limits.tries_all:
        one = _in_order(fitting, known, limits.priority)
        return Proposal(one, "the next of the grid", dropped, len(fitting))
    if best is None or not known.residuals:
        one = min(fitting, key=known.seconds)
        return Proposal(one, "the fastest by what is expected", dropped, len(fitting))
    hopeful = [one for one in fitting if known.lowest(one) < best]
    if not hopeful:
        why = "no other candidate can be faster than the best, within the stated error of the estimates"
        return Proposal(None, why, dropped)
    if slower := len(fitting) - len(hopeful):
        dropped = {**dropped, "cannot be faster than the best": slower}
    # The one that may be fastest, not the one that probably is: what is least certain teaches most.
    return Proposal(min(hopeful, key=known.lowest), "it may be the fastest", dropped, len(hopeful))


def _spent(limits: Limits) -> str:
    """Return which limit has been reached; "" if none."""
    if limits.trials_left is not None and limits.trials_left <= 0:
        return "`max_trials` trials have run"
    if limits.seconds_left is not None and limits.seconds_left <= 0:
        return "`max_time` has passed"
    return ""


def _fitting(
    untried: Sequence[Candidate], too_large: Sequence[Changes], known: Known
) -> tuple[list[Candidate], dict[str, int]]:
    fitting, by_estimate, by_trial = [], 0, 0
    for one in untried:
        if known.capacity and known.nbytes(one) * one.memory_factor > known.capacity:
            by_estimate += 1
        elif any(needs_more(one.changes, other) for other in too_large):
            by_trial += 1
        else:
            fitting.append(one)
    counts = {
        "do not fit by the 95 % side of their estimate": by_estimate,
        "need at least as much memory as a trial that ran out of it": by_trial,
    }
    return fitting, {reason: count for reason, count in counts.items() if count}


def needs_more(changes: Changes, other: Changes) -> bool:
    """Return whether a candidate needs at least as much memory as another one, whatever the model is.

    That is known only if they differ in nothing but these: a larger micro-batch, less recomputation, whole
    sequences on each rank, and whole optimizer states all need more.
    """
    ordered = (MICRO, SEQUENCE, DISTRIBUTED, GRANULARITY, METHOD, LAYERS)
    same = {*changes, *other} - {*ordered}
    if any(changes.get(name) != other.get(name) for name in same):
        return False
    return (
        changes.get(MICRO, 1) >= other.get(MICRO, 1)
        and all(bool(changes.get(name)) <= bool(other.get(name)) for name in (SEQUENCE, DISTRIBUTED))
        and _recomputes_less(changes, other)
    )


def _recomputes_less(changes: Changes, other: Changes) -> bool:
    """Return whether a candidate certainly keeps at least as many activations as another."""
    names = (GRANULARITY, METHOD, LAYERS)
    mine, its = (tuple(one.get(name) for name in names) for one in (changes, other))
    if mine == its or mine[0] is None:
        return True
    if mine[:2] == its[:2] == ("full", "block"):
        return int(mine[2] or 0) <= int(its[2] or 0)
    return False


def _in_order(fitting: Sequence[Candidate], known: Known, priority: str | None) -> Candidate:
    if priority == "memory":
        return min(fitting, key=lambda one: one.nbytes)
    if priority == "performance":
        return min(fitting, key=known.seconds)
    return fitting[0]


def _repeated(tried: Sequence[Tried]) -> str:
    """Return the failure that the last trials have in common; "" if they do not."""
    last = [one.failure for one in tried[-FAILURES:] if not one.is_out_of_memory]
    return last[0] if len(last) == FAILURES and len({*last}) == 1 else ""
