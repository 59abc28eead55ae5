"""Guided and ordinary requests in real engines, under random aborts, preemptions and cache resets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flagscale.run.env import import_path
from flagscale_testing.engines import ENVIRONMENT
from flagscale_testing.guidance_storm import SETTINGS, Outcome, report

ROOT = Path(__file__).parents[2]


def storms(folder: Path, seed: int, count: int, *settings: str) -> list[str]:
    """Run storms in a process of their own, because vLLM changes its environment; return a line per storm."""
    command = [sys.executable, "-m", "flagscale_testing.guidance_storm", str(folder)]
    options = [f"--seed={seed}", f"--count={count}", *(f"--setting={one}" for one in settings)]
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": import_path(str(ROOT))}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=3000)
    lines = [line for line in done.stdout.splitlines() if " equal, " in line]
    assert done.returncode == 0, "\n".join([*lines, done.stderr[-3000:]])
    return lines


@pytest.mark.slow  # three engines; the played worker's storms show the scheduler's part
def test_answers_in_a_storm_are_those_in_calm(tmp_path: Path) -> None:
    lines = storms(tmp_path / "model", 5, 80, "few_blocks_cache", "few_blocks_sync")
    assert [line.partition(":")[0] for line in lines] == ["few_blocks_cache", "few_blocks_sync"]
    assert not any(" 0 preemptions" in line for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", [1, 2])
def test_answers_in_long_storms_are_those_in_calm(tmp_path: Path, seed: int) -> None:
    assert len(storms(tmp_path / "model", seed, 150)) == len(SETTINGS)


def test_a_storm_reports_what_is_wrong() -> None:
    outcome = Outcome({0: ["a"], 1: ["b"]}, frozenset({2}), 10, 3, 1.0, (3,))
    line = report("sync", outcome, [["a"], ["c"], ["d"], ["e"]], ["blocks: 1"])
    assert line.startswith("sync: 1 of 2 equal, 1 aborted, 3 preemptions")
    assert line.endswith("; without answer: (3,); wrong: [1]; left: ['blocks: 1']")
