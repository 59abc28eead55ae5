"""The frame of a training program, without training."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil

from flagscale_testing.ranks.training import environment, wait_for

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
