"""Stop a run on this host: end every process of it, and no other process."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import psutil

from flagscale.errors import FlagScaleError
from flagscale.node import processes
from flagscale.node.status import orphaned
from flagscale.run.failure import how_it_ended
from flagscale.run.rundir import RunDir
from flagscale.run.state import ENDED, HostState, Reply, read_state
from flagscale.values import LaunchPlan, NodeCommand

_STOP_SLACK = 15.0
"""Seconds beyond the grace after which a supervisor that was signalled to stop is considered stuck."""
_LEFTOVER_GRACE = 2.0
_UNKNOWN_GRACE = 10.0
"""Seconds that processes have to end after TERM if the grace in the plan is unknown."""


def stop(plan: LaunchPlan, node: NodeCommand) -> Reply:
    """End every process of the run on this host, then run `after_stop` if there were any; safe to repeat.

    Reply: {"ok": bool, "message": str, "ended": whether anything was running}, and "ended_with": the ranks of
    other hosts that have ended with this one, if there are any; nothing of the run is left on them either.
    """
    files = RunDir(Path(plan.exp_dir))
    _wake_holder(plan, node)
    with files.on_host(node.host):
        state = _state(plan, node)
        living = processes.of_run(plan.run_id, node.host.rank, processes.group_of(state))
        if not living:
            state = _state(plan, node)  # the final one, if it has ended since
        # Another host's stop may have reached the supervisor first; `after_stop` still has to run.
        running = bool(living) or (state.phase == "stopped" and not state.is_tidied)
        was_supervised = processes.living(state.supervisor) is not None
        died = state.supervisor is not None and not was_supervised
        left = _end(plan, node, state)
        # Not earlier: a supervisor that is starting would miss them, and fail instead of being stopped.
        files.secrets(node.host).unlink(missing_ok=True)
        if left:
            return _survived(left)
        _record_end(plan, node, died)
        if not running:
            return {"ok": True, "ended": False, "message": "nothing was running"}
        with suppress(OSError):  # a full disk must not prevent a stop
            _state(plan, node).changed(is_tidied=True).write(files.state(node.host))
        trouble = _after_stop(plan, node)
    reply: Reply = {"ok": not trouble, "ended": True, "message": trouble or "stopped"}
    # What an earlier stop has found is too old to rely on.
    others = _state(plan, node).ended_with if was_supervised else ()
    return {**reply, "ended_with": others} if others else reply


def stop_without_plan(run_id: str, rank: int) -> Reply:
    """End every process of a run whose plan was not found on this host (file system not mounted, or emptied).

    Reply: as for `stop`.
    """
    if not processes.of_run(run_id, rank):
        return {"ok": True, "ended": False, "message": "nothing was started there"}
    left = processes.end(lambda: processes.of_run(run_id, rank), _UNKNOWN_GRACE)
    if left:
        return _survived(left)
    message = "stopped, but experiment.cmds.after_stop was not run: run plan not found on this host"
    return {"ok": True, "ended": True, "message": message}


def _survived(left: list[psutil.Process]) -> Reply:
    names = ", ".join(f"{process.pid} ({process.name()})" for process in left)
    return {"ok": False, "ended": True, "message": f"could not be killed: {names}"}


def _wake_holder(plan: LaunchPlan, node: NodeCommand) -> None:
    """Wake processes of the run that were paused (SIGSTOP), so that they release the lock if they hold it."""
    try:
        with RunDir(Path(plan.exp_dir)).on_host(node.host, busy=BlockingIOError()):
            pass
    except BlockingIOError:
        processes.send(processes.of_run(plan.run_id, node.host.rank), signal.SIGCONT)


def _state(plan: LaunchPlan, node: NodeCommand) -> HostState:
    """Return the recorded state, or a new one: a lost or damaged state must not prevent a stop."""
    try:
        state = read_state(RunDir(Path(plan.exp_dir)).state(node.host), plan.run_id)
    except FlagScaleError:
        state = None
    return state or HostState(plan.run_id, "starting")


def _end(plan: LaunchPlan, node: NodeCommand, state: HostState) -> list[psutil.Process]:
    """End a run through its supervisor if it is alive, then end all that is left; return what survives."""
    supervisor, group = processes.living(state.supervisor), processes.group_of(state)
    if supervisor:
        processes.send([supervisor], signal.SIGTERM)
        # It also waits for the hosts that end with this one.
        longest = max(one.stop_grace for one in (plan.nodes if plan.stops_together else (node,)))
        processes.wait_until_gone(supervisor, longest + _STOP_SLACK)

    def may_miss() -> bool:
        # A supervisor that records the end has verified it: everything on this host descended from it.
        return supervisor is None or _state(plan, node).phase not in ENDED

    return processes.end(
        lambda: processes.of_run(plan.run_id, node.host.rank, group),
        _LEFTOVER_GRACE if supervisor else node.stop_grace,
        may_miss,
    )


def _record_end(plan: LaunchPlan, node: NodeCommand, died: bool) -> None:
    """Write the final state if neither supervisor nor guard did; a run that had `died` was not stopped."""
    state = _state(plan, node)
    if state.phase in ENDED:
        return
    ended = orphaned(state) if died else state.changed(phase="stopped", ended=time.time())
    ended.write(RunDir(Path(plan.exp_dir)).state(node.host))


def _after_stop(plan: LaunchPlan, node: NodeCommand) -> str:
    """Run the user's lines; return an error message, or "" if they succeeded."""
    if not plan.after_stop:
        return ""
    after = subprocess.run(
        ["bash", "-c", plan.after_stop],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=node.cwd,
        check=False,
    )
    if after.returncode == 0:
        return ""
    printed = after.stdout.strip() or "it printed nothing"
    return f"stopped, but experiment.cmds.after_stop {how_it_ended(after.returncode)}: {printed}"
