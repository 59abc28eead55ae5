"""The GPT training program, which soon slows down: for jobs that run while a test looks at them.

At full speed such a job takes every core from the commands that the test waits for.
"""

from __future__ import annotations

import itertools
import sys
import time
from typing import Any

from megatron.flagscale.program import run

QUICK = 15
"""Micro-batches with a short pause, in which a test sees some iterations and a checkpoint."""
_NUMBERS = itertools.count()


def forward_step(data_iterator: Any, model: Any) -> tuple[Any, Any]:
    from megatron.flagscale import forward

    time.sleep(0.1 if next(_NUMBERS) < QUICK else 1.0)
    return forward.forward_step(data_iterator, model)


if __name__ == "__main__":
    sys.exit(run(forward_step=forward_step))
