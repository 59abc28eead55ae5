"""The scores of an evaluation: what the harness returns as rows, and a table for people."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

_STDERR = "_stderr"
_HEADS = ("model", "task", "metric", "value", "stderr", "n-shot", "examples")


@dataclass(frozen=True)
class Score:
    """The value of one metric of a task for a model."""

    model: str
    iteration: int | None
    task: str
    metric: str
    """With the filter of the answers, if it is not `none`: `exact_match (strict)`."""
    value: float
    stderr: float | None
    """None if the harness cannot estimate it, as from a single example."""
    shots: int | None
    examples: int | None
    higher_is_better: bool | None


def scores_of(results: Mapping[str, Any], model: str, iteration: int | None) -> Iterator[Score]:
    """Yield the scores in the results of `lm_eval.simple_evaluate` (0.4.13, `lm_eval/result_schema.py`)."""
    for task, found in results["results"].items():
        for key, value in found.items():
            name, _, chosen = key.partition(",")
            if not chosen or name.endswith(_STDERR) or not isinstance(value, Real):
                continue
            stderr = found.get(f"{name}{_STDERR},{chosen}")
            better = (results["higher_is_better"].get(task) or {}).get(name)
            yield Score(
                model=model,
                iteration=iteration,
                task=task,
                metric=name if chosen == "none" else f"{name} ({chosen})",
                value=float(value),
                stderr=float(stderr) if isinstance(stderr, Real) and math.isfinite(stderr) else None,
                shots=results["n-shot"].get(task),
                examples=found.get("sample_len"),
                higher_is_better=better,
            )


def to_json(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Return the scores as plain values."""
    return [asdict(one) for one in scores]


def table(scores: Sequence[Score]) -> str:
    """Return a table with one line per score, by task and metric, then in the order of the models."""
    order = {(one.task, one.metric): number for number, one in reversed([*enumerate(scores)])}
    ordered = sorted(scores, key=lambda one: order[one.task, one.metric])
    rows = [_HEADS, *map(_row, ordered)]
    if len({one.model for one in scores}) == 1:
        rows = [row[1:] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    texts = len(widths) - 4  # the columns of text come first
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if place < texts else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def _row(score: Score) -> tuple[str, ...]:
    arrow = {True: " ↑", False: " ↓", None: ""}[score.higher_is_better]
    shown = ("-" if one is None else str(one) for one in (score.shots, score.examples))
    stderr = "-" if score.stderr is None else f"{score.stderr:.4f}"
    return (score.model, score.task, f"{score.metric}{arrow}", f"{score.value:.4f}", stderr, *shown)
