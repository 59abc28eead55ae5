"""A training program that trains nothing: it takes the time, and meets the end, that its layout stands for.

Arguments are those of Megatron; all others are ignored. The time of a step is `FAKE_SECONDS` (default 0.01)
times the share of the model's work on a rank, with the bubble of the pipeline, and more for tensor
parallelism. `FAKE_ENDS` maps layouts (`tp2`, `pp2`, `mbs4`, or several joined by `,`) to what happens there:
`oom`, `fail`, `hang`. Each start adds a line with the layout to `FAKE_STARTS`, if that names a file.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("tensor-model-parallel", "pipeline-model-parallel", "context-parallel"):
        parser.add_argument(f"--{name}-size", type=int, default=1)
    for name in ("micro-batch-size", "global-batch-size", "train-iters", "seq-length"):
        parser.add_argument(f"--{name}", type=int, default=1)
    parser.add_argument("--recompute-granularity", default="")
    parser.add_argument("--metrics-file", type=Path)
    known, _ = parser.parse_known_args()
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    tp, pp, micro = (
        known.tensor_model_parallel_size,
        known.pipeline_model_parallel_size,
        known.micro_batch_size,
    )
    copies = world // (tp * pp * known.context_parallel_size)
    count = max(1, known.global_batch_size // (copies * micro))
    seconds = float(os.environ.get("FAKE_SECONDS", "0.01")) * (1 + (pp - 1) / count) * (1 + 0.2 * (tp - 1))
    seconds *= (1 + 0.3 * (known.recompute_granularity == "full")) * (1 + 0.1 / micro)
    layout = {f"tp{tp}", f"pp{pp}", f"mbs{micro}"}
    if rank == 0 and (starts := os.environ.get("FAKE_STARTS")):
        with open(starts, "a", encoding="utf-8") as file:
            file.write(f"{','.join(sorted(layout))}\n")
    ends = json.loads(os.environ.get("FAKE_ENDS") or "{}")
    end = next((what for where, what in ends.items() if layout >= {*where.split(",")}), "")
    if end == "oom":
        # As PyTorch words it on a chip.
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    if end == "fail":
        sys.exit("this layout is not for me")
    for iteration in range(1, known.train_iters + 1):
        if end == "hang":
            time.sleep(600)
        taken = seconds * (5 if iteration == 1 else 1)
        time.sleep(taken)
        if rank == world - 1 and known.metrics_file:
            record = {
                "iteration": iteration,
                "train_iters": known.train_iters,
                "iteration_ms": taken * 1000,
                "mem_bytes": (100 + 10 * micro) << 20,
                "time": time.time(),
            }
            with known.metrics_file.open("a", encoding="utf-8") as file:
                file.write(f"{json.dumps(record)}\n")


if __name__ == "__main__":
    main()
