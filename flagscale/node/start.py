"""Start a run on this host."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

from flagscale.run.env import run_tags
from flagscale.run.failure import Failure, how_it_ended
from flagscale.run.logs import last_lines, write_header
from flagscale.run.rundir import RunDir
from flagscale.run.state import HostState, ProcessId, Reply, read_state
from flagscale.values import LaunchPlan, NodeCommand

_POLL = 0.05
_LAST_LINES = 20
_MARGIN = 10.0
"""Seconds beyond `start_timeout` for the supervisors of several hosts, which report the missing host."""


def start(plan: LaunchPlan, node: NodeCommand) -> Reply:
    """Start this host's script in a new session; return once its supervisor has started the engine or failed.

    Reply: {"ok": bool, "message": str}.
    """
    files = RunDir(Path(plan.exp_dir))
    path = files.state(node.host)
    with files.on_host(node.host):
        if read_state(path, plan.run_id) is not None:
            return {"ok": False, "message": "stopped before it started", "stopped": True}
        script = _start_script(plan, node)
        try:
            first = HostState(plan.run_id, "starting", ProcessId.of(script.pid), started=time.time())
            first.write(path)
        except BaseException:
            # No state names it, and it is waiting for this lock: no other process can end it.
            os.killpg(script.pid, signal.SIGKILL)
            raise
        finally:
            # Wait for it, because otherwise it would stay a zombie of a launcher that stays (action=test);
            # but only after its birth was read, which is lost if it ends at once.
            threading.Thread(target=script.wait, daemon=True).start()
    deadline = time.monotonic() + plan.start_timeout + (_MARGIN if plan.channel else 0)
    state, seen = first, None
    while time.monotonic() < deadline:
        ended = script.poll() is not None
        if (stamp := _stamp(path)) != seen:
            state, seen = read_state(path, plan.run_id) or first, stamp
        if state.phase == "failed" and state.failure:
            return {"ok": False, "message": f"{state.failure.message}\n{state.failure.traceback}".rstrip()}
        if state.phase == "stopped":
            return {"ok": False, "message": "stopped", "stopped": True}
        if state.phase != "starting":
            return {"ok": True, "message": state.phase}
        if ended:
            return _failed(first, files, node, _script_failure(plan, node, script.returncode))
        time.sleep(_POLL)
    log = files.output(node.host)
    reply = _failed(first, files, node, f"the job did not start within {plan.start_timeout:g} s; see {log}")
    from flagscale.node.stop import stop  # imports psutil, which a successful start does not need

    stop(plan, node)
    return reply


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return a value that changes whenever a state is written, as a new file; None if there is no state."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def vacant(exp_dir: str) -> Reply:
    """Reply: {"ok": whether no job is running in this run directory on this host}."""
    from flagscale.node.processes import living  # imports psutil, which a start does not need

    for path in RunDir(Path(exp_dir)).states():
        state = read_state(path)
        if state and living(state.supervisor):
            what = f"run {state.run_id} is still running in {exp_dir}"
            return {"ok": False, "message": f"{what}; stop it first, or use another experiment.exp_dir"}
    return {"ok": True, "message": "vacant"}


def _start_script(plan: LaunchPlan, node: NodeCommand) -> subprocess.Popen[bytes]:
    files = RunDir(Path(plan.exp_dir))
    with files.output(node.host).open("ab") as output:
        write_header(output, plan.run_id, node.host.name, time.strftime("%Y-%m-%d %H:%M:%S"))
        return subprocess.Popen(
            ["bash", str(files.run_script(node.host))],
            # Identifies it as a process of this run from its first moment.
            env={**os.environ, **run_tags(plan.run_id, node.host.rank)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _script_failure(plan: LaunchPlan, node: NodeCommand, code: int) -> str:
    what = "experiment.cmds.before_start" if plan.before_start else "the start script"
    printed = last_lines(RunDir(Path(plan.exp_dir)).output(node.host), plan.run_id, _LAST_LINES).strip()
    return f"{what} {how_it_ended(code)}: {printed or 'it printed nothing'}"


def _failed(first: HostState, files: RunDir, node: NodeCommand, message: str) -> Reply:
    """Record that the start failed, unless it was stopped meanwhile."""
    path = files.state(node.host)
    with files.on_host(node.host):
        state = read_state(path, first.run_id) or first
        if state.phase == "stopped":
            return {"ok": False, "message": "stopped", "stopped": True}
        failure = Failure(message, exitcode=1, time=time.time())
        state.changed(phase="failed", failure=failure, exit_code=1, ended=time.time()).write(path)
    return {"ok": False, "message": message}
