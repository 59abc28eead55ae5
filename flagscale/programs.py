"""How the programs of a job are, for people: a line a server or engine."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

from flagscale.job import LaunchPlan
from flagscale.node.program_state import ProgramState
from flagscale.progress import duration, quantity

Placed = tuple[str, ProgramState]
"""A host's name and the state of a program there."""


def has_programs(plan: LaunchPlan) -> bool:
    """Whether the job runs programs rather than ranks."""
    return any(node.programs for node in plan.nodes)


def servers(plan: LaunchPlan) -> list[tuple[str, str]]:
    """Return (model, address) of every server that the plan starts."""
    programs = (program for node in plan.nodes for program in node.programs)
    return [(program.model, program.url) for program in programs if program.url]


def phase_of_running(
    plan: LaunchPlan, programs: Sequence[Placed]
) -> Literal["starting", "running", "stopping"]:
    """Return what a job is whose hosts run: starting until all servers have answered, stopping once a program
    has failed (its host has not said so yet).
    """
    phases = [state.phase for _, state in programs]
    if "failed" in phases:
        return "stopping"
    answered = sum(phase in ("ready", "unhealthy") for phase in phases)
    return "starting" if answered < len(servers(plan)) else "running"


def program_lines(programs: Sequence[Placed]) -> list[str]:
    """Return a line a program, names and addresses in columns."""
    rows = [(state.name, state.url or host, _text(state)) for host, state in programs]
    wide = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    return [f"{name:{wide[0]}}  {place:{wide[1]}}  {text}".rstrip() for name, place, text in rows]


def change(programs: Sequence[Placed]) -> object:
    """Return what is different once there is something new to tell; the speed of a server is not."""
    return [(host, state.name, state.phase, state.done) for host, state in programs]


def _text(state: ProgramState) -> str:
    if state.phase == "starting":
        waited = duration(max(0.0, time.time() - state.since))
        return f"starting for {waited}{f': {state.last_line}' if state.last_line else ''}"
    parts: list[str] = [state.phase]
    if state.total is not None:
        parts.append(f"{state.done}/{state.total} prompts")
    if state.requests_running is not None:
        parts.append(f"{state.requests_running} running, {state.requests_waiting} waiting")
    if state.tokens_per_s is not None:
        parts.append(f"{quantity(state.tokens_per_s)} tokens/s")
    if state.url and state.model:
        parts.append(f"model {state.model}")
    return "  ".join(parts)
