"""Measure the cost of slow links between meshes, and how much of it extra micro-batches in flight save.

Two equal meshes, on one CPU core each, train one pipeline. A thread delays every message between them before
it is posted, as if it took that long to travel; meanwhile the ranks go on. Prints the time per step for each
delay and number of `hetero_extra_micro_batches`, and how long the ranks waited per step.

    python -m benchmarks.hetero_travel [--milliseconds 0 5 20] [--extra 0 1 2] [--rounds 3] [--layers 12]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace
from itertools import product
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from benchmarks.hetero import EQUAL, Size, together
from benchmarks.turns import Chip, Outcome, in_turns, work

DELAY = "MESSAGES_TRAVEL_SECONDS"


def main() -> None:
    """Measure all pairs of delay and number of extra micro-batches in turn, and print the medians."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--milliseconds", type=float, nargs="+", default=[0, 5, 20])
    parser.add_argument("--extra", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument(
        "--steps", type=int, default=3, help="measured steps per round (default: %(default)s)"
    )
    asked = parser.parse_args()
    size = Size(asked.layers, hidden=128, micro_batches=64)
    found: dict[tuple[float, int], list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.rounds):
            for delay, extra in product(asked.milliseconds, asked.extra):
                chips = [_slowly(chip, delay / 1000) for chip in EQUAL]
                job = together(chips, size, (size.layers // 2, size.layers // 2), extra)
                job = replace(job, worker="benchmarks.hetero_travel --worker")
                found.setdefault((delay, extra), []).extend(
                    in_turns(Path(folder) / f"{number}_{delay}_{extra}", [[job]], asked.steps)
                )
    print("| message delay, ms | extra micro-batches | s per step | wait, first stage | wait, last stage |")
    print("|---|---|---|---|---|")
    for (delay, extra), outcomes in found.items():
        step = statistics.median(step for outcome in outcomes for step in outcome.steps)
        waited = (
            statistics.median(rank["wait"] / rank["step"] for rank in stage)
            for stage in zip(*(outcome.ranks for outcome in outcomes), strict=True)
        )
        print(f"| {delay:g} | {extra} | {step:.2f} | {' | '.join(f'{share:.1%}' for share in waited)} |")


def _slowly(chip: Chip, seconds: float) -> Chip:
    return replace(chip, environment={**chip.environment, DELAY: str(seconds)})


def _hold_back(seconds: float) -> None:
    """Make one thread post every message that much later, in the order in which they were sent."""
    from megatron.flagscale.hetero.lane import Lane

    post = Lane.send
    held: SimpleQueue[tuple[float, Lane, Any]] = SimpleQueue()

    def send(self: Lane, tensor: Any) -> None:
        # A copy, because the schedule frees the memory of sent tensors.
        held.put((time.monotonic() + seconds, self, tensor.detach().clone()))

    def deliver() -> None:
        while True:
            due, lane, tensor = held.get()
            time.sleep(max(0.0, due - time.monotonic()))
            post(lane, tensor)

    Lane.send = send  # type: ignore[method-assign]
    threading.Thread(target=deliver, daemon=True).start()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        from megatron.flagscale.bootstrap import patch_engine

        patch_engine()
        _hold_back(float(os.environ[DELAY]))
        work(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        main()
