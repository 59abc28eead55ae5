"""Why a host's share of a run ended: the first failing rank as its launcher tells it, else how that ended."""

from __future__ import annotations

import json
import signal
import time
from dataclasses import fields, replace
from pathlib import Path

from flagscale.job import LaunchPlan, NodeCommand
from flagscale.launch.ranklogs import rank_logs
from flagscale.launch.rundir import RunDir
from flagscale.node.output import last_lines
from flagscale.node.state import Failure

_LAST_LINES = 20


def first_failure(
    plan: LaunchPlan, node: NodeCommand, exit_code: int, out_of_memory: bool = False
) -> Failure:
    """Return the cause to show: the rank that the failure file names, else how the launcher ended.

    Args:
        exit_code: the launcher's, negative for a signal.
        out_of_memory: whether the kernel killed processes of this host meanwhile.
    """
    told = _told(Path(node.failure_file))
    if told is not None:
        if out_of_memory and told.signal == "SIGKILL":
            told = replace(
                told, message=f"{told.message}: this host ran out of memory and its kernel killed it"
            )
        return told if told.local_rank is None else _with_log(told, node)
    name = signal_name(exit_code)
    ended = f"was killed by {name}" if name else f"ended with exit code {exit_code}"
    output = RunDir(Path(plan.exp_dir)).output(node.host)
    return Failure(
        message=f"the launcher {ended}",
        exitcode=exit_code,
        signal=name,
        # A signal says it all; an exit code without a rank to blame is explained only by what was printed.
        traceback="" if name else last_lines(output, plan.run_id, _LAST_LINES),
        time=time.time(),
    )


def _told(file: Path) -> Failure | None:
    """What `megatron.flagscale.torchrun` wrote when a rank failed; None where it did not."""
    known = {field.name for field in fields(Failure)}
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        return Failure(**{name: value for name, value in told.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _with_log(failure: Failure, node: NodeCommand) -> Failure:
    streams = rank_logs(node).get(failure.local_rank or 0, ())
    return replace(failure, log=str(streams[-1])) if streams else failure


def signal_name(exit_code: int) -> str | None:
    """Return the name of the signal that ended a process, None for one that ended by itself."""
    if exit_code >= 0:
        return None
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"  # a real-time signal has no name
