"""The state of a run on this host, as recorded and as it is."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from flagscale.node import processes
from flagscale.run.failure import Failure
from flagscale.run.rundir import RunDir
from flagscale.run.state import ENDED, HostState, Reply, read_state
from flagscale.values import LaunchPlan, NodeCommand

_GUARDED = "the supervisor was killed; its guard ends the processes of the run"


def status(plan: LaunchPlan, node: NodeCommand, count: str = "") -> Reply:
    """Return this host's state, corrected where the recorded supervisor is not there any more.

    Reply: the fields of `HostState` (none where this run left no state here), and "processes": how many of
    the run live; 0 without `count`, because to look at all processes of a host takes tens of milliseconds.
    """
    state = _true_state(plan, node)
    group = processes.group_of(state) if state else None
    living = processes.of_run(plan.run_id, node.host.rank, group) if count else ()
    return {**(asdict(state) if state else {}), "processes": len(living)}


def status_without_plan(run_id: str, rank: int) -> Reply:
    """Return what there is to see of a run where its plan is not to be seen; as `status`, without a state."""
    return {"processes": len(processes.of_run(run_id, rank))}


def orphaned(state: HostState) -> HostState:
    """Return the state of a run that neither its supervisor nor its guard could bring to an end."""
    restarted = state.supervisor is not None and not state.supervisor.is_of_this_boot
    message = (
        "the host was restarted"
        if restarted
        else "the supervisor is gone and left no word: it was killed, or could not write its state"
    )
    return state.changed(phase="failed", exit_code=1, failure=Failure(message), ended=time.time())


def _true_state(plan: LaunchPlan, node: NodeCommand) -> HostState | None:
    path = RunDir(Path(plan.exp_dir)).state(node.host)
    state = read_state(path, plan.run_id)
    if state is None or state.phase in ENDED or processes.living(state.supervisor):
        return state
    guarded = processes.living(state.guard) is not None
    # The end may have been written since: by the supervisor before it went, or by its guard.
    state = read_state(path, plan.run_id) or state
    if state.phase in ENDED:
        return state
    return state.changed(phase="stopping", failure=Failure(_GUARDED)) if guarded else orphaned(state)
