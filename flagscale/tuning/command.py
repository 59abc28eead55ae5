"""The tuner of a run directory as other commands see it: whether one runs, what it does, how it is ended."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from flagscale.formats import count, duration, seconds_text
from flagscale.run.tuner_dir import TunerDir

STOP_WITHIN = 60.0
"""Seconds that a tuner has to end its trial after a request."""
_POLL = 0.2


def status_json(files: TunerDir) -> dict[str, Any] | None:
    """Return the status of a run directory's tuner for programs; None if there never was one."""
    state = files.read_state()
    if not state:
        return None
    phase = "tuning" if files.is_held() else "ended" if state.get("phase") == "ended" else "interrupted"
    return {
        "state": phase,
        "reason": state.get("reason") or "",
        "candidates": state.get("candidates"),
        "trials": state.get("trials"),
        "tried": state.get("tried"),
        "trial": state.get("trial") if phase == "tuning" else None,
        "best": state.get("best"),
        "history": str(files.history),
    }


def status_text(status: Mapping[str, Any]) -> str:
    """Return the status of a tuner for people."""
    trials, trial, best = (status[key] for key in ("trials", "trial", "best"))
    why = f", {status['reason']}" if status["reason"] else ""
    tried = f"tried {status['tried'] or 0} of {status['candidates']} candidates"
    lines = [f"{_WORDS[status['state']]}: {tried} in {count(trials or 0, 'trial')}{why}"]
    if trial:
        passed = duration(max(0.0, time.time() - trial["started"]))
        lines.append(f"  trial {trial['number']}, for {passed}: {trial['label']}")
    if best:
        lines.append(
            f"  best: trial {best['number']}, {seconds_text(best['seconds'])} per step: {best['label']}"
        )
    return "\n".join([*lines, f"  history  {status['history']}"])


_WORDS = {
    "tuning": "tuning",
    "ended": "tuning has ended",
    "interrupted": "tuning was interrupted (action=auto_tune continues)",
}


def request_stop(files: TunerDir) -> bool:
    """Ask the tuner of a run directory to end its trial and itself; return whether none runs afterwards.

    It may run on another host that shares the directory, so the request is a file.
    """
    if not files.is_held():
        return True
    files.stop_request.touch()
    deadline = time.monotonic() + STOP_WITHIN
    while files.is_held():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL)
    return True


def newest_trial(files: TunerDir) -> int | None:
    """Return the number of the trial that runs, or that was running when its tuner died."""
    trial = files.read_state().get("trial")
    number = trial.get("number") if isinstance(trial, dict) else None
    return number if type(number) is int else None
