"""Requests to end torchrun (SIGTERM, SIGINT, SIGHUP): any number of them, at any time.

A scheduler signals all processes of a job at once, and the supervisor adds its own signal. Until torchrun
starts ranks, a request just ends it. While ranks run, the first request is passed on to them as SIGTERM;
torchrun then waits for all of them and exits with their outcome. After that, requests are ignored.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable
from subprocess import Popen
from typing import Any

from megatron.flagscale.patching import TORCH, Patch

_REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Ending:
    """Ends torchrun's ranks on request; made before torchrun is imported, at the start of its process."""

    def __init__(self) -> None:
        # A request that the caller ignores, as `nohup` does, stays ignored.
        self._numbers = [number for number in _REQUESTS if signal.getsignal(number) is not signal.SIG_IGN]
        self._request: int | None = None
        self._ranks: list[Popen[bytes]] = []
        # Python's own reaction to SIGINT would raise an exception in the middle of an import.
        self._react(signal.SIG_DFL)

    @property
    def exit_code(self) -> int | None:
        """The exit code of an end on request if not all ranks ended with 0; None without a request."""
        return None if self._request is None else 128 + self._request

    def ignore_requests(self) -> None:
        """Ignore requests from now on, because the outcome is known; Python's own exit keeps this."""
        self._react(signal.SIG_IGN)

    def patches(self) -> tuple[Patch, ...]:
        """Return the patches by which torchrun ends on request."""
        why = "It ends at the first signal, in any line of code, with the ranks killed after a fixed time."
        target = "torch.distributed.elastic.multiprocessing.api:PContext"
        return (
            Patch(f"{target}.start", self._starting, why, "torchrun", TORCH),
            Patch(f"{target}.wait", self._waiting, why, "torchrun", TORCH),
        )

    def _react(self, reaction: Any) -> None:
        for number in self._numbers:
            signal.signal(number, reaction)

    def _on_request(self, number: int, frame: object) -> None:
        if self._request is None:
            self._request = number
            self._pass_on()

    def _pass_on(self) -> None:
        for rank in self._ranks:
            rank.terminate()

    def _starting(self, original: Callable[[Any], None]) -> Callable[[Any], None]:
        @functools.wraps(original)
        def start(context: Any) -> None:
            self._react(self._on_request)
            original(context)
            self._ranks = [handler.proc for handler in context.subprocess_handlers.values()]
            if self._request is not None:  # it came before all ranks were known
                self._pass_on()

        return start

    def _waiting(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def wait(context: Any, timeout: float = -1, period: float = 1) -> Any:
            result = original(context, timeout, period) if self._request is None else None
            if result is not None and result.is_failed():
                return result
            if result is not None:
                # torchrun now waits for the other hosts, and has nothing left to end.
                self._react(signal.SIG_DFL)
            if self._request is None:
                return result
            codes = [rank.wait() for rank in self._ranks]
            self.ignore_requests()
            if any(code > 0 for code in codes):  # a rank failed while it ended: torchrun reports it
                return original(context, timeout, period)
            raise SystemExit(self.exit_code if any(codes) else 0)

        return wait
