"""The trials that were run: an entry per trial, which of them count now, and the table for people."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from flagscale.formats import count
from flagscale.frozen import dataclass
from flagscale.planner.tuning.space import (
    CP,
    DISTRIBUTED,
    DP,
    EP,
    GRANULARITY,
    LAYERS,
    METHOD,
    MICRO,
    PER_CHUNK,
    PP,
    SEQUENCE,
    TP,
    USE,
    Changes,
)
from flagscale.planner.tuning.tried import Tried, key_of, standings
from flagscale.tuning.outcome import Outcome, noise_of


@dataclass(frozen=True)
class Conditions:
    """What is equal in all trials that count: the arguments besides those tuned, versions, hosts."""

    arguments: str
    """A hash of the arguments of the engine and the program."""
    versions: Mapping[str, str]
    hosts: Sequence[str]

    def key(self, changes: Changes) -> str:
        """Return the key of a trial: a hash of its arguments, the versions and the hosts."""
        return hashed([self.arguments, sorted(changes.items()), self.versions, [*self.hosts]])

    def why_not(self, entry: Mapping[str, Any]) -> str:
        """Return in what an entry differs; "" if it counts."""
        different = {
            "arguments": entry.get("arguments") != self.arguments,
            "versions": entry.get("versions") != dict(self.versions),
            "hosts": entry.get("hosts") != [*self.hosts],
        }
        return " and ".join(name for name, differs in different.items() if differs)


def hashed(value: Any) -> str:
    """Return a hash of plain values; others count by their text."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def entry_of(
    number: int,
    changes: Changes,
    outcome: Outcome,
    estimate: Mapping[str, float],
    conditions: Conditions,
    started: float,
    sizes: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the line of the history for a trial; `sizes`: what else people want to see of its layout."""
    return {
        "key": conditions.key(changes),
        "number": number,
        "changes": dict(changes),
        "state": outcome.state,
        "seconds": outcome.seconds,
        "mem_bytes": outcome.nbytes,
        "iterations": [round(one, 6) for one in outcome.iterations],
        "failure": outcome.failure,
        "estimate": dict(estimate),
        "sizes": dict(sizes),
        "started": started,
        "elapsed": round(time.time() - started, 2),
        "arguments": conditions.arguments,
        "versions": dict(conditions.versions),
        "hosts": [*conditions.hosts],
    }


def counted(
    entries: Sequence[Mapping[str, Any]], conditions: Conditions, layouts: Sequence[Changes]
) -> tuple[list[Any], str]:
    """Return the entries that count, and a notice about the others ("" if none).

    Those count whose conditions are these and whose changes are among `layouts`, the legal ones.
    """
    keys = {key_of(one) for one in layouts}
    reasons = [_why_not(one, conditions, keys) for one in entries]
    used = [one for one, why in zip(entries, reasons, strict=True) if not why]
    if not (others := list(filter(None, reasons))):
        return used, ""
    trials = f"{count(len(others), 'trial')} of the history"
    differ = "have" if len(others) > 1 else "has"
    return used, f"{trials} {differ} other {', '.join(dict.fromkeys(others))}: kept, but not used"


def _why_not(entry: Mapping[str, Any], conditions: Conditions, keys: Collection[Any]) -> str:
    if not _is_entry(entry):
        return "form"
    return conditions.why_not(entry) or ("" if key_of(entry["changes"]) in keys else "layouts")


def _is_entry(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("changes"), dict) and isinstance(entry.get("state"), str)


def tried_of(entries: Sequence[Mapping[str, Any]]) -> list[Tried]:
    """Return what the trials have shown, as the planner takes it."""
    return [
        Tried(
            one["changes"],
            one.get("seconds") if one["state"] == "measured" else None,
            one["state"] == "out of memory",
            str(one.get("failure") or ""),
            noise_of(one.get("iterations") or ()),
        )
        for one in entries
    ]


def best_of(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Return the first trial of the fastest layout, with the mean `seconds` of all its trials; None: none."""
    fastest = next(iter(standings(tried_of(entries))), None)
    if fastest is None:
        return None
    same = [one for one in entries if key_of(one["changes"]) == key_of(fastest.changes)]
    first = next(one for one in same if one["state"] == "measured")
    return {**first, "seconds": fastest.seconds, "repeated": fastest.trials}


_COLUMNS = (
    *(DP, TP, PP, EP, CP, DISTRIBUTED, SEQUENCE, "acc_step", MICRO, PER_CHUNK),
    *(USE, METHOD, GRANULARITY, LAYERS),
)
"""The columns of FlagScale v0.6.0 between `idx` and the results, in its order."""


def table(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the history as CSV with the columns of v0.6.0 first: fastest first, then what was not measured.

    Times are in seconds (elapsed_time) and milliseconds per iteration (performance), memory in MiB.
    """
    ordered = sorted(entries, key=lambda one: (one.get("seconds") is None, one.get("seconds") or 0.0))
    more = [
        name for name in dict.fromkeys(n for one in entries for n in one["changes"]) if name not in _COLUMNS
    ]
    results = ("elapsed_time", "start_time", "max_mem", "performance", "error")
    ours = ("memory_model", "estimated_ms", "state", *more)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("idx", *_COLUMNS, *results, *ours))
    for one in ordered:
        changes, sizes, estimate = one["changes"], one.get("sizes") or {}, one.get("estimate") or {}
        row = {**changes, **sizes, USE: changes.get(GRANULARITY) is not None}
        begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.get("started") or 0))
        is_full = one["state"] == "out of memory"
        writer.writerow(
            (
                one["number"],
                *(row.get(name, "") for name in _COLUMNS),
                one.get("elapsed"),
                begun,
                "OOM" if is_full else _rounded(one.get("mem_bytes"), 2**20),
                _rounded(one.get("seconds"), 1e-3),
                one.get("failure") or "",
                _rounded(estimate.get("bytes"), 2**20),
                _rounded(estimate.get("seconds"), 1e-3),
                one["state"],
                *(changes.get(name, "") for name in more),
            )
        )
    return text.getvalue()


def _rounded(value: float | None, unit: float) -> float | str:
    return round(value / unit, 3) if value else ""
