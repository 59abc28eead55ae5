"""The services of a job: their order, the endpoints that clients use, what their states mean for the job."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from flagscale.run.failure import Failure
from flagscale.run.state import ServiceState
from flagscale.values import LaunchPlan

HostedService = tuple[str, ServiceState]
"""A host's name and the state of a service there."""


@dataclass(frozen=True)
class Endpoint:
    """The one address of several instances: the state of its router, and those of the instances."""

    host: str
    router: ServiceState
    instances: tuple[HostedService, ...]

    @property
    def ready(self) -> int:
        """How many instances are ready."""
        return sum(state.phase == "ready" for _, state in self.instances)

    @property
    def total(self) -> ServiceState:
        """The state of the router, with the load of all instances that report one."""
        states = [state for _, state in self.instances]
        return replace(
            self.router,
            requests_running=_sum(state.requests_running for state in states),
            requests_waiting=_sum(state.requests_waiting for state in states),
            tokens_per_s=_sum(state.tokens_per_s for state in states),
            prompt_tokens_per_s=_sum(state.prompt_tokens_per_s for state in states),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the endpoint for programs, as plain JSON values."""
        instances = [state.name for _, state in self.instances]
        return {"host": self.host, **asdict(self.total), "instances": instances, "ready": self.ready}


def _sum[Number: (int, float)](figures: Iterable[Number | None]) -> Number | None:
    known = [figure for figure in figures if figure is not None]
    return sum(known) if known else None


def endpoints(services: Sequence[HostedService]) -> list[Endpoint]:
    """Return the endpoints among the services."""
    found = []
    for host, state in services:
        behind = tuple(one for one in services if one[1].behind == state.name and one[1].url)
        if behind:
            found.append(Endpoint(host, state, behind))
    return found


def in_order(services: Sequence[HostedService]) -> list[tuple[int, HostedService]]:
    """Return every service with its depth: what clients address (0) comes before what stands behind it."""
    names = {state.name for _, state in services}

    def below(name: str, depth: int) -> Iterator[tuple[int, HostedService]]:
        for one in services:
            state = one[1]
            if state.behind == name or (not depth and state.behind not in names):
                yield depth, one
                yield from below(state.name, depth + 1)

    return list(below("", 0))


def has_services(plan: LaunchPlan) -> bool:
    """Return whether the job runs services rather than ranks."""
    return bool(plan.services)


def servers(plan: LaunchPlan) -> list[tuple[str, str]]:
    """Return (model, address) of every server that clients address."""
    return [(one.model, one.url) for one in plan.services if one.url and not one.behind]


def phase_of_running(
    plan: LaunchPlan, services: Sequence[HostedService]
) -> Literal["starting", "running", "stopping"]:
    """Return the phase of a job whose hosts are running: starting until all servers have answered, stopping
    once a service has failed, unless others go on without it, or was stopped (and its host has not reported
    that yet).
    """
    states = [state for _, state in services]
    if any(
        state.phase == "stopped" or (state.phase == "failed" and not is_given_up(state)) for state in states
    ):
        return "stopping"
    answered = sum(state.phase in ("ready", "unhealthy", "restarting", "failed") for state in states)
    return "starting" if answered < sum(bool(one.url) for one in plan.services) else "running"


def is_given_up(state: ServiceState) -> bool:
    """Return whether a service is an instance that is not started again; the others go on without it."""
    return state.phase == "failed" and bool(state.behind) and bool(state.failure and state.failure.is_final)


def first_of_lost(services: Sequence[HostedService]) -> tuple[str, Failure] | None:
    """Return the first failure behind an endpoint whose instances have all failed for good, and its host."""
    for endpoint in endpoints(services):
        if all(state.phase == "failed" and state.failure for _, state in endpoint.instances):
            failures = [(host, state.failure) for host, state in endpoint.instances if state.failure]
            return min(failures, key=lambda failure: failure[1].time)
    return None


def programs_json(services: Sequence[HostedService]) -> list[dict[str, Any]]:
    """Return the services for programs, as plain JSON values."""
    return [{"host": host, **asdict(state)} for _, (host, state) in in_order(services)]


def change(services: Sequence[HostedService]) -> object:
    """Return a value that changes when there is something new to show; a server's speed does not count."""
    return [(host, state.name, state.phase, state.restarts, state.done) for host, state in services]
