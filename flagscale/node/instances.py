"""What follows when a service ends by itself or no longer answers: rules of states, without effects.

The instances behind one address live apart: the others answer while one of them starts again. Everything else
runs together or not at all.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from flagscale.errors import UserError
from flagscale.run.state import OVER, ServicePhase
from flagscale.values import Recovery, Service

Kind = Literal["router", "instance", "joint"]
"""A `router` has instances behind it; an `instance` is a whole server behind a router; all other services are
`joint`, also an instance with parts on other hosts: none of its parts can start again alone."""
Sequel = Literal["end the job", "start again", "go on without it"]

_LOST_AFTER = 30.0
"""Seconds without an answer from a router after which no instance is left, if none is started again."""


def kind_of(service: Service, services: Collection[Service]) -> Kind:
    """Return the kind of a service, given all services of the job on all hosts."""
    routers = {one.behind for one in services if one.url and one.behind}
    if service.name in routers:
        return "router"
    has_parts = any(one.behind == service.name for one in services)
    return "instance" if service.url and service.behind in routers and not has_parts else "joint"


def sequel(kind: Kind, is_first_start: bool, exit_code: int, restarts: int, max_restarts: int) -> Sequel:
    """Return what follows after a service has ended by itself.

    Args:
        is_first_start: whether it has never answered: the job is still starting, and `run` reports why.
        exit_code: negative for a signal.
        restarts: how often the service was started again before.
    """
    if kind == "joint" or is_first_start:
        return "end the job"
    # Restarting cannot fix a mistake of the user.
    if restarts < max_restarts and exit_code != UserError.exit_code:
        return "start again"
    return "end the job" if kind == "router" else "go on without it"


def pause(kind: Kind, restart: int) -> float:
    """Return the seconds to wait before a restart, numbered from 1: clients wait for the router meanwhile."""
    if kind == "router" and restart == 1:
        return 0.0
    return Recovery.pause(restart)


def silence_allowed(has_answered: bool, hang_timeout: float | None, ready_timeout: float) -> float | None:
    """Return the seconds without an answer after which a router or an instance is ended; None: no limit."""
    return hang_timeout if has_answered else ready_timeout


def is_lost(
    here: Collection[ServicePhase],
    are_all_here: bool,
    silent: float,
    max_restarts: int,
    ready_timeout: float,
) -> bool:
    """Return whether no instance behind a router can answer again.

    Args:
        here: the phases of its instances on the router's host.
        are_all_here: whether no instance runs on another host, of which only the router can tell.
        silent: seconds for which the router has reported no ready instance.
    """
    if any(phase not in OVER for phase in here):
        return False
    return are_all_here or silent > (ready_timeout if max_restarts else _LOST_AFTER)
