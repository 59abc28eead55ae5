"""Start a run on this host: the run script executes its supervisor, or a session becomes the supervisor.

The session does what the script would do, unless the script has lines of the user, which need a shell.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from flagscale.run.env import import_path, run_tags
from flagscale.run.failure import Failure, how_it_ended
from flagscale.run.logs import last_lines, write_header
from flagscale.run.rundir import RunDir
from flagscale.run.state import HostState, ProcessId, Reply, read_state
from flagscale.values import LaunchPlan, NodeCommand

_POLL = 0.05
_LAST_LINES = 20
_MARGIN = 10.0
"""Seconds beyond `start_timeout` for the supervisors of several hosts, which report the missing host."""
_STOPPED: Reply = {"ok": False, "message": "stopped", "stopped": True}
_STOPPED_BEFORE: Reply = {"ok": False, "message": "stopped before it started", "stopped": True}


def start(plan: LaunchPlan, node: NodeCommand) -> Reply:
    """Start this host's script in a new session; return once its supervisor has started the engine or failed.

    Reply: {"ok": bool, "message": str}.
    """
    files = RunDir(Path(plan.exp_dir))
    path = files.state(node.host)
    with files.on_host(node.host):
        if read_state(path, plan.run_id) is not None:
            return _STOPPED_BEFORE
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
        if reply := reply_of(state):
            return reply
        if ended:
            return _failed(plan, node, _script_failure(plan, node, script.returncode))
        time.sleep(_POLL)
    log = files.output(node.host)
    reply = _failed(plan, node, f"the job did not start within {plan.start_timeout:g} s; see {log}")
    if reply["ok"]:
        return reply
    from flagscale.node.stop import stop  # imports psutil, which a successful start does not need

    stop(plan, node)
    return reply


def supervise(plan: LaunchPlan, node: NodeCommand) -> int:
    """Supervise this host's share of a run in this process, which the run script executes.

    Returns the exit code of the agent.
    """
    from flagscale.node.supervisor import Supervisor

    supervisor = Supervisor(plan, node)
    # Waits until `start` has written the first state. TERM is not handled yet: it just ends this process.
    with RunDir(Path(plan.exp_dir)).on_host(node.host):
        supervisor.begin()
    return supervisor.run()


def supervise_from_session(plan: LaunchPlan, node: NodeCommand, answer: Callable[[Reply], None]) -> int:
    """Do the same in this process, a session of the launcher, without a script.

    Args:
        answer: called with the reply, as of `start`; the first call counts.

    Raises:
        FlagScaleError, OSError: this process cannot become the supervisor.
    """
    from flagscale.node.supervisor import Supervisor

    def report(state: HostState) -> None:
        if reply := reply_of(state):
            answer(reply)

    files = RunDir(Path(plan.exp_dir))
    with files.on_host(node.host):
        if read_state(files.state(node.host), plan.run_id) is not None:
            answer(_STOPPED_BEFORE)
            return 1
        _leave_session(plan, node)
        supervisor = Supervisor(plan, node, report)
        supervisor.begin()
    return supervisor.run()


def supervise_script(plan: LaunchPlan, node: NodeCommand) -> int:
    """Run this host's script, which becomes the supervisor, and stay until it has ended; pass TERM on to it.

    Returns its exit code. If it ends before the supervisor has begun, that is recorded.
    """
    files = RunDir(Path(plan.exp_dir))
    path = files.state(node.host)
    requests: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        requests.append(number)
        script.terminate()

    with files.on_host(node.host):
        if read_state(path, plan.run_id) is not None:
            return 1
        script = _start_script(plan, node)
        signal.signal(signal.SIGTERM, pass_on)
        HostState(plan.run_id, "starting", ProcessId.of(script.pid), started=time.time()).write(path)
    code = script.wait()
    state = read_state(path, plan.run_id)
    if state and state.phase == "starting" and requests:
        state.changed(phase="stopped", exit_code=0, ended=time.time()).write(path)
    elif state and state.phase == "starting":
        _failed(plan, node, _script_failure(plan, node, code))
    return code if code >= 0 else 128 - code


def _leave_session(plan: LaunchPlan, node: NodeCommand) -> None:
    """Give this process what the run script would have: its session, streams, signals, and environment."""
    if os.getpgrp() != os.getpid():  # a task of a batch system has a process group of its own
        os.setsid()
    with _open_log(plan, node) as output, open(os.devnull, "rb") as nothing:
        for source, stream in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source.fileno(), stream)
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)  # a shell makes the programs in its background ignore these
    os.environ["PWD"] = node.cwd
    if plan.source_root:
        os.environ["PYTHONPATH"] = import_path(plan.source_root, os.environ.get("PYTHONPATH", ""))


def outcome(plan: LaunchPlan, node: NodeCommand, what: str) -> Reply:
    """Reply as `start` for a start whose session has ended without an answer; `what` was noticed then.

    If it has ended because of a bug, the traceback is in the log.
    """
    reply = _failed(plan, node, what)
    printed = _last_lines(plan, node)
    if reply["ok"] or "stopped" in reply or not printed:
        return reply
    return {**reply, "message": f"{reply['message']}\n{printed}"}


def reply_of(state: HostState) -> Reply | None:
    """Return the reply to a start that has led to this state; None while that is open."""
    if state.phase == "stopped":
        return _STOPPED
    if state.phase == "failed" and state.failure:
        return {"ok": False, "message": f"{state.failure.message}\n{state.failure.traceback}".rstrip()}
    return None if state.phase == "starting" else {"ok": True, "message": state.phase}


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
    with _open_log(plan, node) as output:
        return subprocess.Popen(
            ["bash", str(RunDir(Path(plan.exp_dir)).run_script(node.host))],
            # Identifies it as a process of this run from its first moment.
            env={**os.environ, **run_tags(plan.run_id, node.host.rank)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _open_log(plan: LaunchPlan, node: NodeCommand) -> BinaryIO:
    """Return the log of this host, with the header of this run as its last line."""
    output = RunDir(Path(plan.exp_dir)).output(node.host).open("ab")
    write_header(output, plan.run_id, node.host.name, time.strftime("%Y-%m-%d %H:%M:%S"))
    return output


def _script_failure(plan: LaunchPlan, node: NodeCommand, code: int) -> str:
    what = "experiment.cmds.before_start" if plan.before_start else "the start script"
    return f"{what} {how_it_ended(code)}: {_last_lines(plan, node) or 'it printed nothing'}"


def _last_lines(plan: LaunchPlan, node: NodeCommand) -> str:
    return last_lines(RunDir(Path(plan.exp_dir)).output(node.host), plan.run_id, _LAST_LINES).strip()


def _failed(plan: LaunchPlan, node: NodeCommand, message: str) -> Reply:
    """Record that the start failed, unless its end, or its success, was recorded meanwhile."""
    files = RunDir(Path(plan.exp_dir))
    path = files.state(node.host)
    with files.on_host(node.host):
        state = read_state(path, plan.run_id) or HostState(plan.run_id, "starting")
        if reply := reply_of(state):
            return reply
        failure = Failure(message, exitcode=1, time=time.time())
        state.changed(phase="failed", failure=failure, exit_code=1, ended=time.time()).write(path)
    return {"ok": False, "message": message}
