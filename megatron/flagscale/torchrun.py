"""torchrun that names the first failing rank: `python -m megatron.flagscale.torchrun <torchrun arguments>`.

It is torchrun itself, with three differences:

* if a worker fails, a JSON file (environment variable FLAGSCALE_FAILURE_FILE) names the rank that failed
  first;
* SIGTERM, SIGINT and SIGHUP are passed on to the ranks as SIGTERM, and the ranks may take the time they need
  to save a checkpoint; the exit code is then theirs: 0 if all of them ended with 0 (see `ending`);
* after a failure the surviving ranks get 3 seconds instead of 30, unless `--shutdown-timeout` is given.
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

from flagscale.errors import RollBackError, UserError
from flagscale.run.env import FAILURE_FILE
from flagscale.run.failure import Failure, how_it_ended, signal_name, write_failure
from megatron.flagscale.ending import Ending
from megatron.flagscale.metrics.mlflow_entry import FAILED, KILLED, mark_ended
from megatron.flagscale.patching import TORCH, Patch, apply
from megatron.flagscale.startup import importing

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

SURVIVORS_SECONDS = 3

# A rank that reports one of these has lost a peer: it is a victim, not the cause.
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

    A rank that was killed by a signal comes before peers with exceptions about its closed connection; among
    equals the earliest wins. torchrun sends SIGTERM to survivors, and communication libraries abort (SIGABRT)
    after losing a peer.
    """
    return min(failures, key=lambda failure: (_order(failure), failure.time))


_VICTIMS = 2
"""From this order on, a failure looks like the consequence of another one."""


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
    """Return the failures that torchrun collected by global rank, without those of ranks it ended itself."""
    own = {rank: child for rank, child in children.items() if child.exitcode > 0 or child.pid in early}
    return [_failure_of(rank, child) for rank, child in (own or children).items()]


def _failure_of(rank: int, child: ProcessFailure) -> Failure:
    message: Any = child.message
    traceback = ""
    if isinstance(message, dict):
        traceback = message.get("extraInfo", {}).get("py_callstack", "")
        message = message.get("message", "")
        for kind in (UserError, RollBackError):
            if message.startswith(prefix := f"{kind.__name__}: "):
                # It needs no traceback: the message alone explains it.
                message, traceback = message.removeprefix(prefix).removeprefix("- "), ""
    elif child.exitcode > 0:
        message = f"{how_it_ended(child.exitcode)}; see the output of this rank"
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
    """Shorten the wait for survivors; record in `early` which failed before torchrun ended the rest."""
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


def main() -> int:
    """Run torchrun with this process's arguments; the module's docstring lists the differences."""
    ending = Ending()
    os.environ.setdefault("PET_SIGNALS_TO_HANDLE", "SIGQUIT")

    with importing():
        from torch.distributed.elastic.multiprocessing.api import PContext, SignalException
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.run import parse_args, run

    # The report below replaces its messages about the processes that it ends.
    logging.getLogger(PContext.__module__).setLevel(logging.CRITICAL)
    args = parse_args(None)
    early: set[int] = set()
    Patch(
        "torch.distributed.elastic.multiprocessing.api:PContext.close",
        _close_soon(args.shutdown_timeout or SURVIVORS_SECONDS, early),
        "It waits 30 seconds for survivors regardless of --shutdown-timeout, and forgets which it ended.",
        "torchrun",
        TORCH,
    ).apply()
    apply(ending.patches())
    try:
        run(args)
    except ChildFailedError as error:
        failure = first_failure(failures_of(error.failures, early))
        if ending.exit_code is not None and failure.signal == "SIGTERM":
            # The same request reached a rank first.
            mark_ended(args.training_script_args, KILLED)
            return ending.exit_code
        _report(failure)
        if failure.exitcode != RollBackError.exit_code:
            mark_ended(args.training_script_args, FAILED)
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    except SystemExit as end:  # on request
        if end.code:
            mark_ended(args.training_script_args, KILLED)
        raise
    finally:
        ending.ignore_requests()
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
