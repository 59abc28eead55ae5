"""Functions that run on several ranks: forks of one process with all imports, connected by gloo."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist


def on_ranks(world: int, folder: Path, function: Callable[[int], None]) -> int:
    """Call `function(rank)` in `world` processes with a default group; return the largest exit code."""
    ranks = []
    for rank in range(world):
        if not (pid := os.fork()):
            code = 1
            try:
                dist.init_process_group(
                    "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world
                )
                function(rank)
                dist.destroy_process_group()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        ranks.append(pid)
    return max(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in ranks)
