"""Why a host's share of a run ended: the first rank that failed, if reported; else how its agent ended.

For an engine that prints its errors, the first exception in its output is the cause.
"""

from __future__ import annotations

import json
import re
import signal
import time
from pathlib import Path

from flagscale.files import write_atomic
from flagscale.frozen import asdict, dataclass, replace
from flagscale.run.logs import last_lines, rank_logs
from flagscale.run.rundir import RunDir
from flagscale.values import LaunchPlan, NodeCommand

MISTAKE = "flagscale: error: "
"""The text before each mistake of the user that a program of ours prints; it then ends with exit code 2."""
_LAST_LINES = 20
_MARK = re.compile(
    r"^(\(\w[\w ]* pid=\d+\) )?(?:(?:ERROR|WARNING|INFO|CRITICAL) [\d-]+ [\d:]+ \[[^\]]*\] ?)?"
)
"""The prefix of the lines of vLLM's processes, which print at the same time."""
_DETAILS = " [type="
"""The text after which pydantic quotes the values that it checked."""
_TRACEBACK = "Traceback (most recent call last):"
_NO_MEMORY = "because this host ran out of memory"
_FOLLOWING = 3
"""Lines after the one that names the exception; they belong to its message if they are indented."""


@dataclass(frozen=True)
class Failure:
    """What ended a run on a host: the first failing rank if one is known, and why."""

    message: str
    rank: int | None = None
    local_rank: int | None = None
    pid: int | None = None
    exitcode: int | None = None
    signal: str | None = None
    """The name of the signal that killed the process; None if no signal did."""
    traceback: str = ""
    """The traceback of the rank; if no rank is known, the last lines that the agent printed."""
    log: str = ""
    """The file on that host that holds the output of the rank."""
    time: float = 0.0
    is_victim: bool = False
    """Whether the cause lies on another host."""
    is_final: bool = False
    """Whether another attempt would end in the same way, because the parts that may restart have done so."""


def write_failure(path: Path, failure: Failure) -> None:
    """Write a host's failure file, in which an agent reports the first failure to the supervisor."""
    write_atomic(path, json.dumps(asdict(failure), indent=1) + "\n")


def signal_name(exit_code: int) -> str | None:
    """Return the name of the signal that killed a process; None if no signal did."""
    if exit_code >= 0:
        return None
    try:
        return signal.Signals(-exit_code).name
    except ValueError:
        return f"signal {-exit_code}"  # a real-time signal has no name


def how_it_ended(exit_code: int) -> str:
    """Return `was killed by SIGKILL` or `ended with exit code 3`."""
    name = signal_name(exit_code)
    return f"was killed by {name}" if name else f"ended with exit code {exit_code}"


def for_lack_of_memory(failure: Failure) -> Failure:
    """Return a failure with its cause: the kernel killed a process for lack of memory at that time."""
    if _NO_MEMORY in failure.message:
        return failure
    whom = "it" if failure.signal == "SIGKILL" else "a process"
    return replace(failure, message=f"{failure.message}: the kernel killed {whom} {_NO_MEMORY}")


_OUT_OF_MEMORY = re.compile(
    r"out of memory|OutOfMemory|\bMemoryError\b|can(no|')t allocate memory|failed to allocate memory",
    re.IGNORECASE,
)


def is_out_of_memory(text: str) -> bool:
    """Return whether a text says that a device or the host had no memory left.

    The words are those of PyTorch for chips and CPUs, of Python, and of the kernel (`for_lack_of_memory`).
    """
    return bool(_OUT_OF_MEMORY.search(text))


def first_failure(
    plan: LaunchPlan, node: NodeCommand, exit_code: int, out_of_memory: bool = False
) -> Failure:
    """Return the cause to show: the rank named in the failure file, else how the agent ended.

    Args:
        exit_code: of the agent; negative for a signal.
        out_of_memory: whether the kernel killed processes of this host during the attempt.
    """
    reported = _read_failure(Path(node.failure_file))
    if reported is not None:
        if out_of_memory and reported.signal == "SIGKILL":
            reported = for_lack_of_memory(reported)
        return reported if reported.local_rank is None else _with_log(reported, node)
    name = signal_name(exit_code)
    output = RunDir(Path(plan.exp_dir)).output(node.host)
    return Failure(
        message=f"the agent {how_it_ended(exit_code)}",
        exitcode=exit_code,
        signal=name,
        # A signal needs no explanation; an exit code without a failed rank is explained only by the output.
        traceback="" if name else last_lines(output, plan.run_id, _LAST_LINES),
        time=time.time(),
    )


def _read_failure(file: Path) -> Failure | None:
    """Return the failure that the agent reported for a rank or a service; None if it reported none."""
    known = Failure.__match_args__
    try:
        reported = json.loads(file.read_text(encoding="utf-8"))
        return Failure(**{name: value for name, value in reported.items() if name in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _with_log(failure: Failure, node: NodeCommand) -> Failure:
    streams = rank_logs(node).get(failure.local_rank or 0, ())
    return replace(failure, log=str(streams[-1])) if streams else failure


def mistakes(text: str) -> list[str]:
    """Return the mistakes of the user that a program of ours printed."""
    # Not only at the beginning of a line: a progress bar does not end its own.
    return [line.partition(MISTAKE)[2].strip() for line in text.splitlines() if MISTAKE in line]


def first_exception(text: str) -> tuple[str, str] | None:
    """Return (message, traceback) of the first exception; None if no exception was printed completely."""
    lines = [(found, line) for line in text.splitlines() if (found := _MARK.match(line))]  # matches always
    marked = [(found[1] or "", line[found.end() :]) for found, line in lines]
    for begin, (process, line) in enumerate(marked):
        if line.strip() == _TRACEBACK:
            return _cut([line for other, line in marked[begin + 1 :] if other == process])
    return None


def _cut(lines: list[str]) -> tuple[str, str] | None:
    """Return the traceback up to the first line that is not indented, and the rest of its message."""
    for end, line in enumerate(lines):
        if line and not line.startswith((" ", "|", "+")):
            more = []
            for following in lines[end + 1 : end + 1 + _FOLLOWING]:
                if not following.startswith(" ") or not following.strip():
                    break
                more.append(following)
            said = line + (f" {more[0].strip().partition(_DETAILS)[0]}" if more else "")
            return said, "\n".join([_TRACEBACK, *lines[: end + 1], *more])
    return None
