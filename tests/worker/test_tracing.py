"""Traces of chosen ranks and iterations in a real training, also in one that resumes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from flagscale_testing.ranks.forked import Curve, Run, run_all
from tests.worker.test_retention import MODEL

FILES = "rank-{}.iterations-{}.{}"


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Curve]]:
    """Record iterations 2 and 3 of rank 1 of 2; then resume after 4, and record from 5 to the last one, 6."""
    folder = tmp_path_factory.mktemp("traced")
    saved = str(folder / "saved")
    where = ("--save", saved, "--load", saved, "--save-interval", "4", "--trace-dir", str(folder / "traces"))
    tracing = ("--profile", "--use-pytorch-profiler", "--profile-ranks", "1", "--record-memory-history")

    def run(name: str, start: int, end: int, until: int, *more: str) -> Run:
        steps = ("--profile-step-start", str(start), "--profile-step-end", str(end))
        return Run(name, 2, (*MODEL, *where, *tracing, *steps, "--train-iters", str(until), *more))

    chakra = "--pytorch-profiler-collect-chakra"
    shapes = "--pytorch-profiler-collect-shapes"
    resumed = run("resumed", 5, 100, 6, "--override-opt-param-scheduler")
    return folder, run_all([run("begun", 2, 4, 4, chakra, shapes), resumed], folder)


def events(path: Path) -> list[dict[str, Any]]:
    """Return the events of a trace as Perfetto reads it."""
    found: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return found


def test_the_chosen_rank_writes_the_chosen_iterations(traced: tuple[Path, dict[str, Curve]]) -> None:
    folder, curves = traced
    assert not any(curve.error for curve in curves.values())
    assert sorted(path.name for path in (folder / "traces").iterdir()) == [
        FILES.format(1, "2-3", "chakra.json.gz"),
        FILES.format(1, "2-3", "json.gz"),
        FILES.format(1, "2-3", "txt"),
        FILES.format(1, "5-6", "json.gz"),
        FILES.format(1, "5-6", "txt"),
    ]
    trace = folder / "traces" / FILES.format(1, "5-6", "json.gz")
    line = f"flagscale: trace of rank 1, iterations 5 to 6: {trace}, with a table beside it (.txt)"
    assert line in (folder / "resumed" / "output").read_text()


def test_a_trace_has_the_operations_of_its_iterations_and_the_memory(
    traced: tuple[Path, dict[str, Curve]],
) -> None:
    traces = traced[0] / "traces"
    found = events(traces / FILES.format(1, "2-3", "json.gz"))
    # Each rank has one micro-batch per iteration, with an embedding of tokens and one of positions.
    assert sum(event.get("name") == "aten::embedding" for event in found) == 2 * 2
    assert any(event.get("name") == "[memory]" for event in found)
    table = (traces / FILES.format(1, "2-3", "txt")).read_text()
    assert table.startswith("rank 1, iterations 2 to 3: the 40 most expensive operations\n")
    operations = [
        word for line in table.splitlines() for word in line.split()[:1] if word.startswith("aten::")
    ]
    assert len(operations) > 1
    assert {*operations} <= {event.get("name") for event in found}
    assert "CPU Mem" in table
    assert "Input Shapes" in table
    assert "Input Shapes" not in (traces / FILES.format(1, "5-6", "txt")).read_text()
