"""Megatron's own report of the memory of a job, computed by the installed engine in one child process.

`python -m benchmarks.engine_report` reads a list of arguments (by dest) as JSON from stdin, and writes the
bytes of each job, or null, to stdout.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.measured_rows import Row
from flagscale.planner.training import Training

TOOL = "Megatron's report"
_MIB = 2**20


def reported(rows: Sequence[Row]) -> list[float | None]:
    """Return the bytes that the engine reports for each row; None if it fails or has no such layout."""
    wanted = [_arguments(row) if len(row.copies) == 1 else None for row in rows]
    given = json.dumps([one for one in wanted if one])
    child = subprocess.run(
        [sys.executable, "-m", "benchmarks.engine_report"],
        input=given,
        capture_output=True,
        text=True,
        check=True,
    )
    found = iter(json.loads(child.stdout.splitlines()[-1]))
    return [next(found) if one else None for one in wanted]


def _arguments(row: Row) -> dict[str, Any] | None:
    """Return the arguments as the engine has them after its own checks; None for several meshes."""
    (job,) = row.copies
    if len(job.layout.meshes) > 1 or row.values is None:
        return None
    return {name: value for name, value in {**row.values, **_checked(job, row)}.items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | str | list)


def _checked(job: Training, row: Row) -> dict[str, Any]:
    """Return the arguments that the engine changes in its checks (megatron/training/arguments.py)."""
    model, mesh, block = job.model, job.layout.meshes[0], job.blocks[0]
    return {
        "hidden_size": model.hidden,
        "ffn_hidden_size": model.ffn,
        "kv_channels": model.head_dim,
        "num_query_groups": model.groups,
        "padded_vocab_size": job.padded_vocabulary,
        "moe_layer_freq": [int(has_experts) for has_experts in model.experts_in],
        "moe_ffn_hidden_size": model.expert_ffn,
        "num_experts": model.experts or None,
        "mtp_num_layers": model.prediction_heads or None,
        "expert_tensor_parallel_size": block.expert_tp,
        "sequence_parallel": block.sequence_parallel,
        "virtual_pipeline_model_parallel_size": job.layout.chunks if job.layout.chunks > 1 else None,
        "data_parallel_size": mesh.dp,
        "world_size": row.world_size,
        "num_microbatches": job.micro_batches,
    }


def _report(arguments: Mapping[str, Any]) -> float | None:
    from megatron.training.theoretical_memory_usage import report_theoretical_memory

    try:
        found = report_theoretical_memory(Namespace(**arguments), arguments["num_microbatches"])
    except (AssertionError, AttributeError, TypeError, ValueError, ZeroDivisionError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return None
    return found[-1] * _MIB if found else None


def main() -> None:
    """Report the jobs on stdin."""
    with contextlib.redirect_stdout(sys.stderr):
        found = [_report(arguments) for arguments in json.load(sys.stdin)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
