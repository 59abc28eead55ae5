"""End services in order: first those that clients address, then the ones that these pass requests on to.

A server that is asked to end takes no new requests and finishes those that it has begun. What stands behind
it must answer until then.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from flagscale.node import health
from flagscale.node.agent import SERVICES_EXIT
from flagscale.node.service import ServiceMonitor
from flagscale.values import LOCAL_NAMES, LaunchPlan

_POLL = 0.1
_LAST = 1.0
"""Seconds that a killed process has to end."""
_PATIENCE = 1.0
"""Seconds that a server on another host has to answer; otherwise it counts as ended."""
_UNSEEN = 3.0
"""Seconds after which one counts as ended that listens on the loopback address of another host."""


def end(living: Sequence[ServiceMonitor], plan: LaunchPlan, seconds: float) -> None:
    """End services of this host: begun requests have `seconds` to finish; the supervisor ends leftovers."""
    begun = time.monotonic()
    due = begun + seconds
    asked: dict[ServiceMonitor, float] = {}
    # A router has nothing to tidy up; once its requests are cut, the instances can exit properly.
    kill_at = {one: due + (0.0 if one.kind == "router" else SERVICES_EXIT) for one in living}
    while running := [one for one in living if one.code is None]:
        now = time.monotonic()
        unasked = [one for one in running if one not in asked]
        busy = _busy({one.service.behind for one in unasked}, living, plan, now - begun) if now < due else {}
        for one in running:
            if one in asked:
                if one.idle_at > asked[one]:
                    # It has nothing left to finish, but vLLM may take all the time that it was given.
                    kill_at[one] = min(kill_at[one], now + SERVICES_EXIT)
                if now > kill_at[one]:
                    one.process.kill()
            elif not busy.get(one.service.behind):
                asked[one] = now
                if _is_without_requests(one):
                    kill_at[one] = now + SERVICES_EXIT
                for number in (signal.SIGTERM, signal.SIGCONT):  # it may be paused
                    one.process.send_signal(number)
        if now > due + SERVICES_EXIT + _LAST:
            break  # a process that survives SIGKILL is stuck in the kernel
        time.sleep(_POLL)


def _is_without_requests(one: ServiceMonitor) -> bool:
    """Return whether a service answers no client: it is still loading, or is part of a server that has ended.

    vLLM may not notice TERM before its model is loaded.
    """
    return not one.has_answered and bool(one.service.url or one.service.behind)


def _busy(
    names: set[str], living: Sequence[ServiceMonitor], plan: LaunchPlan, passed: float
) -> dict[str, bool]:
    """Return whether each of these services still passes on requests; one on another host is asked.

    Args:
        passed: seconds since the services are to end.
    """
    here = {one.service.name: one.code is None for one in living}
    elsewhere = {one.name: one.url for one in plan.services if one.url}

    def is_busy(name: str) -> bool:
        if name in here:
            return here[name]
        if urlsplit(elsewhere[name]).hostname in LOCAL_NAMES:
            return passed < _UNSEEN
        return health.check(elsewhere[name], _PATIENCE) is not None

    return {name: is_busy(name) for name in names if name in here or name in elsewhere}
