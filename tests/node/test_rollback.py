"""Ranks that end to go back to a checkpoint start again at once, whatever `max_restarts` is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from flagscale.errors import RollBackError
from flagscale.values import Recovery
from tests.node.conftest import FakeJob, wait_for

AGENT = """
import json, os, sys
from pathlib import Path
codes, count, failure = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
number = int(count.read_text()) if count.exists() else 0
count.write_text(str(number + 1))
if code := codes[number]:
    text = {"message": "iteration 4: the loss is NaN", "rank": 0, "local_rank": 0, "exitcode": code}
    failure.write_text(json.dumps(text))
sys.exit(1 if code else 0)
"""


def started(make_job: Callable[..., FakeJob], tmp_path: Path, codes: list[int], max_restarts: int) -> FakeJob:
    job = make_job()
    (tmp_path / "agent.py").write_text(AGENT)
    node = job.plan.nodes[0]
    command = (sys.executable, "-S", str(tmp_path / "agent.py"), str(codes))
    node = replace(node, argv=(*command, str(tmp_path / "count"), node.failure_file))
    plan = replace(job.plan, nodes=(node,), recovery=Recovery(max_restarts=max_restarts))
    return replace(job, plan=plan).start()


def test_a_rollback_is_not_a_restart(make_job: Callable[..., FakeJob], tmp_path: Path) -> None:
    job = started(make_job, tmp_path, [RollBackError.exit_code] * 2 + [0], max_restarts=0)
    wait_for(lambda: job.state().phase == "finished")
    first, second = job.state().attempts
    assert first.failure.message == second.failure.message == "iteration 4: the loss is NaN"
    assert "restart" not in job.log()


def test_restarts_are_counted_without_the_rollbacks(make_job: Callable[..., FakeJob], tmp_path: Path) -> None:
    job = started(make_job, tmp_path, [RollBackError.exit_code, 1, 1], max_restarts=1)
    wait_for(lambda: job.state().phase == "failed")
    assert len(job.state().attempts) == 2
    assert "flagscale: restart 1 of 1 in 1 s" in job.log()
