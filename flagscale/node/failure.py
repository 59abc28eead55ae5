"""Why a host's share of a run ended: the first failing rank as its launcher tells it, else the launcher's own end."""

from __future__ import annotations

import json
import signal
import time
from collections import deque
from pathlib import Path

from flagscale.node.state import Failure

_TAIL_LINES = 20


def first_failure(exit_code: int, failure_file: Path, output: Path, message: str = "") -> Failure:
    """Return the cause to show.

    Args:
        exit_code: the launcher's, negative for a signal.
        failure_file: written by `megatron.flagscale.torchrun` when a rank failed; may be absent.
        output: the host's log, quoted where no rank is to blame.
        message: said instead of the exit code where the launcher could not even start.
    """
    try:
        told = json.loads(failure_file.read_text(encoding="utf-8"))
        return Failure(**{name: told[name] for name in Failure.__dataclass_fields__ if name in told})
    except FileNotFoundError:
        pass
    except (ValueError, TypeError) as error:
        message = message or f"the launcher failed and left an unreadable {failure_file.name} ({error})"
    name = signal.Signals(-exit_code).name if exit_code < 0 else None
    ended = f"was killed by {name}" if name else f"ended with exit code {exit_code}"
    return Failure(
        message=message or f"the launcher {ended}",
        exitcode=exit_code,
        signal=name,
        # A signal says it all; an exit code without a rank to blame is explained only by what was printed.
        traceback="" if message or name else tail(output, _TAIL_LINES),
        time=time.time(),
    )


def tail(path: Path, lines: int) -> str:
    """Return the last lines of a text file, "" if it cannot be read."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return "".join(deque(file, lines))
    except OSError:
        return ""
