"""torchrun that names the first failing rank: `python -m megatron.flagscale.torchrun <torchrun arguments>`.

It is torchrun itself, with three differences:

* when a worker fails, a JSON file (environment variable FLAGSCALE_FAILURE_FILE) names the rank that failed
  first;
* SIGTERM is passed on to the ranks, which may take the time they need to save a checkpoint; the exit code is
  then theirs: 0 when all ended well;
* after a failure the surviving ranks get 3 seconds instead of 30, unless `--shutdown-timeout` says otherwise.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flagscale.errors import UserError
from flagscale.run.env import FAILURE_FILE
from flagscale.run.failure import Failure, how_it_ended, signal_name, write_failure
from megatron.flagscale.patching import TORCH, Patch

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SURVIVORS_SECONDS = 3

# What a rank says when a peer went away: it is a victim, not the cause.
_VICTIM_WORDS = (
    "connection closed by peer",
    "connection reset",
    "broken pipe",
    "socket closed",
    "remote peer",
    "connection was likely closed",
    "failed to recv",
    "store is likely down",
)


def first_failure(failures: list[Failure]) -> Failure:
    """Return the failure that caused the others.

    A rank that died from a signal of its own comes before exceptions of peers which saw its connection close;
    among equals the earliest wins. SIGTERM is what torchrun sends to survivors, SIGABRT what a communication
    library does when a peer is gone.
    """
    return min(failures, key=lambda failure: (_order(failure), failure.time))


_VICTIMS = 2
"""From here on a failure looks like the consequence of another one."""


def _order(failure: Failure) -> int:
    if failure.signal == "SIGTERM":
        return 4
    if failure.signal == "SIGABRT":
        return 2
    if failure.signal:
        return 0
    text = f"{failure.message}\n{failure.traceback}".lower()
    return 3 if any(words in text for words in _VICTIM_WORDS) else 1


def failures_of(children: Mapping[int, ProcessFailure], early: Container[int]) -> list[Failure]:
    """Translate what torchrun collected, by global rank, without the ranks it ended itself by a signal."""
    own = {rank: child for rank, child in children.items() if child.exitcode > 0 or child.pid in early}
    return [_failure_of(rank, child) for rank, child in (own or children).items()]


def _failure_of(rank: int, child: ProcessFailure) -> Failure:
    message: Any = child.message
    traceback = ""
    if isinstance(message, dict):
        traceback = message.get("extraInfo", {}).get("py_callstack", "")
        message = message.get("message", "")
        if message.startswith("UserError: "):
            # What the user can mend is told by its message alone.
            message, traceback = message.removeprefix("UserError: ").removeprefix("- "), ""
    elif child.exitcode > 0:
        message = f"{how_it_ended(child.exitcode)}; see its own output"
    path = Path(child.error_file)
    # torchrun's own timestamps are whole seconds.
    when = path.stat().st_mtime if path.is_file() else float(child.timestamp)
    return Failure(
        message=str(message),
        rank=rank,
        local_rank=child.local_rank,
        pid=child.pid,
        exitcode=child.exitcode,
        signal=signal_name(child.exitcode),
        traceback=traceback,
        time=when,
    )


def _close_soon(seconds: int, early: set[int]) -> Callable[[Any], Any]:
    """Shorten the wait for survivors; note in `early` who had failed before torchrun ended the rest."""
    closed = []

    def make(original: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(original)
        def close(self: Any, death_sig: signal.Signals | None = None, timeout: int = seconds) -> None:
            if self not in closed:
                closed.append(self)
                early.update(failure.pid for failure in getattr(self, "_failures", {}).values())
            original(self, death_sig, timeout)

        return close

    return make


def _pass_sigterm_on(signum: int, frame: object) -> None:
    """Tell every rank, wait for all of them, and end as they did."""
    import psutil

    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ranks = [child.pid for child in psutil.Process().children()]
    for pid in ranks:
        os.kill(pid, signal.SIGTERM)
    for pid in ranks:
        # Not reaped here: torchrun's own bookkeeping does that.
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        if ended is not None and (ended.si_code != os.CLD_EXITED or ended.si_status != 0):
            raise SystemExit(128 + signal.SIGTERM)
    raise SystemExit(0 if ranks else 128 + signal.SIGTERM)


def main() -> int:
    """Run torchrun with this process's arguments; see the module for what differs."""
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGINT,SIGHUP,SIGQUIT")
    signal.signal(signal.SIGTERM, _pass_sigterm_on)

    from torch.distributed.elastic.multiprocessing.api import PContext, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # What it tells of the processes it ends is said better by the report below.
    logging.getLogger(PContext.__module__).setLevel(logging.CRITICAL)
    args = parse_args(None)
    early: set[int] = set()
    Patch(
        "torch.distributed.elastic.multiprocessing.api:PContext.close",
        _close_soon(args.shutdown_timeout or SURVIVORS_SECONDS, early),
        "It waits 30 seconds for survivors whatever --shutdown-timeout says, and forgets whom it ended.",
        "torchrun",
        TORCH,
    ).apply()
    try:
        run(args)
    except ChildFailedError as error:
        _report(first_failure(failures_of(error.failures, early)))
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def _report(failure: Failure) -> None:
    if FAILURE_FILE in os.environ:
        is_victim = _order(failure) >= _VICTIMS
        write_failure(Path(os.environ[FAILURE_FILE]), replace(failure, is_victim=is_victim))
    is_mistake = failure.exitcode == UserError.exit_code and not failure.traceback
    who = "error" if is_mistake else f"rank {failure.rank} (pid {failure.pid}) failed"
    print(f"{who}: {failure.message}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
