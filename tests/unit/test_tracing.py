"""Which iterations are recorded, and for which ranks traces can be asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale.checks.tracing import last_iteration, traced_rank_violations, tracing_remarks
from tests.unit.test_megatron_adapter import Build, value

TRACED = {"profile": True, "use_pytorch_profiler": True, "profile_step_start": 2, "profile_step_end": 4}


@pytest.mark.parametrize(("until", "last"), [(10, 10), (None, 11), (100, 11)])
def test_the_last_iteration_is_before_the_end(until: int | None, last: int) -> None:
    assert last_iteration({"profile_step_end": 12, "train_iters": until}) == last


def test_a_trace_that_is_shorter_than_asked_for_or_very_long_is_noted() -> None:
    def noted(**changes: int) -> list[str]:
        return [what for _, what in tracing_remarks({**TRACED, "train_iters": 20, **changes})]

    assert noted() == noted(profile_step_end=12) == []
    assert noted(profile_step_start=15, profile_step_end=22) == [
        "the training ends before: iterations 15 to 20 are recorded"
    ]
    (long,) = noted(profile_step_end=13)
    assert long.startswith("11 iterations are recorded; a rank holds all of their operations in memory")
    assert list(tracing_remarks({"profile": True, "profile_step_end": 100})) == []


def test_ranks_must_exist() -> None:
    assert list(traced_rank_violations({"profile_ranks": [0, 3]}, 4)) == []
    ((name, what),) = traced_rank_violations({"profile_ranks": [0, 4, -1]}, 4)
    assert (name, what) == (
        "profile_ranks",
        "`profile_ranks` names ranks that do not exist: 4, -1; the job has 0 to 3",
    )


def test_traces_are_in_the_run_directory(build: Build, tmp_path: Path) -> None:
    assert value(build(TRACED), "--trace-dir") == str(tmp_path / "run" / "traces")
    assert "--trace-dir" not in build().role.argv
    assert value(build({**TRACED, "trace_dir": "/elsewhere"}), "--trace-dir") == "/elsewhere"
