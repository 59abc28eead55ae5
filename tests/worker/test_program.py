"""The frame of a training program, without training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

from flagscale_testing.ranks.training import environment, wait_for
from megatron.flagscale.program import _with_heartbeat

SPAWNS = """\
import multiprocessing, os, time
from megatron.flagscale.program import run

def work():
    print(os.getpid(), flush=True)
    time.sleep(600)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work).start()
    time.sleep(600)
"""


def test_a_process_spawned_by_a_program_ends_with_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(SPAWNS)
    command = [sys.executable, str(tmp_path / "mine.py")]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        spawned = psutil.Process(int(program.stdout.readline()))
        program.kill()
        try:
            wait_for(lambda: not spawned.is_running() or spawned.status() == psutil.STATUS_ZOMBIE, 10)
        finally:
            if spawned.is_running():
                spawned.kill()


def test_a_forward_step_of_ones_own_may_plan_its_schedule() -> None:
    def step(data: Any, model: Any, return_schedule_plan: bool = False) -> tuple[Any, Any]:
        return data, return_schedule_plan

    # The engine asks for it with `overlap_moe_expert_parallel_comm`.
    assert _with_heartbeat(step)("data", None, return_schedule_plan=True) == ("data", True)
