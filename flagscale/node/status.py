"""The state of a run on this host, as recorded and as it actually is."""

from __future__ import annotations

import time
from pathlib import Path

from flagscale.frozen import asdict
from flagscale.node import processes
from flagscale.run.failure import Failure
from flagscale.run.rundir import RunDir
from flagscale.run.state import ENDED, HostState, Reply, read_state
from flagscale.values import LaunchPlan, NodeCommand

_GUARDED = "the supervisor was killed; its guard ends the processes of the run"


def status(plan: LaunchPlan, node: NodeCommand, count: str = "") -> Reply:
    """Return this host's state, corrected if the recorded supervisor no longer exists.

    Reply: the fields of `HostState` (none if this run has no state here), and "processes": how many processes
    of the run are alive; 0 without `count`, because examining all processes of a host takes tens of
    milliseconds.
    """
    state = _true_state(plan, node)
    group = processes.group_of(state) if state else None
    living = processes.of_run(plan.run_id, node.host.rank, group) if count else ()
    return {**(asdict(state) if state else {}), "processes": len(living)}


def status_without_plan(run_id: str, rank: int) -> Reply:
    """Return the status of a run whose plan was not found on this host: as `status`, without a state."""
    return {"processes": len(processes.of_run(run_id, rank))}


def orphaned(state: HostState) -> HostState:
    """Return the final state of a run whose supervisor and guard could not record one."""
    restarted = state.supervisor is not None and not state.supervisor.is_of_this_boot
    message = (
        "the host was restarted"
        if restarted
        else "the supervisor ended without a report: it was killed, or could not write its state"
    )
    return state.changed(phase="failed", exit_code=1, failure=Failure(message), ended=time.time())


def _true_state(plan: LaunchPlan, node: NodeCommand) -> HostState | None:
    path = RunDir(Path(plan.exp_dir)).state(node.host)
    state = read_state(path, plan.run_id)
    if state is None or state.phase in ENDED or processes.living(state.supervisor):
        return state
    guarded = processes.living(state.guard) is not None
    # The end may have been written since, by the supervisor before it ended, or by its guard.
    state = read_state(path, plan.run_id) or state
    if state.phase in ENDED:
        return state
    return state.changed(phase="stopping", failure=Failure(_GUARDED)) if guarded else orphaned(state)
