"""What a launcher asks of a host. Each command returns plain JSON values; a transport calls it here or remotely."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from flagscale import __version__, platforms, registry
from flagscale.errors import FlagScaleError
from flagscale.job import LaunchPlan, NodeCommand
from flagscale.launch.rundir import RunDir
from flagscale.node import processes
from flagscale.node.state import ENDED, Failure, HostState, read_state

_POLL = 0.05
_STOP_SLACK = 15.0
"""Seconds beyond the grace after which a supervisor that was told to stop is taken to be stuck."""

Reply = dict[str, Any]


def load(exp_dir: str, rank: str) -> tuple[LaunchPlan, NodeCommand]:
    """Return the recorded plan and this host's part of it."""
    plan = RunDir(Path(exp_dir)).read_plan()
    if plan is None:
        raise FlagScaleError(f"no job was started in {exp_dir}")
    return plan, plan.nodes[int(rank)]


def start(exp_dir: str, rank: str) -> Reply:
    """Start this host's script in a session of its own; return when its supervisor runs the engine, or failed to.

    Reply: {"ok": bool, "message": str}.
    """
    plan, node = load(exp_dir, rank)
    files = RunDir(Path(exp_dir))
    path = files.output(node.host)
    with path.open("ab") as output:
        header = f"=== run {plan.run_id} on {node.host.name}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
        output.write(header.encode())
        output.flush()
        position = output.tell()
        script = subprocess.Popen(
            ["bash", str(files.run_script(node.host))],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + plan.start_timeout
    while time.monotonic() < deadline:
        state = read_state(files.state(node.host), plan.run_id)
        if state and state.phase != "starting":
            if state.phase == "failed" and state.failure:
                return {"ok": False, "message": state.failure.message}
            return {"ok": True, "message": state.phase}
        if script.poll() is not None:
            printed = path.read_bytes()[position:].decode(errors="replace").strip()
            what = "the start script (experiment.cmds.before_start?)" if plan.before_start else "the start script"
            return {"ok": False, "message": f"{what} ended with exit code {script.returncode}: {printed or 'no output'}"}
        time.sleep(_POLL)
    return {"ok": False, "message": f"no sign of the supervisor within {plan.start_timeout:g} s; see {path}"}


def stop(exp_dir: str, rank: str) -> Reply:
    """End every process of the run on this host and run `after_stop`; asked again, it finds nothing to do.

    Reply: {"ok": bool, "message": str, "ended": whether anything was running}.
    """
    plan, node = load(exp_dir, rank)
    path = RunDir(Path(exp_dir)).state(node.host)
    state = read_state(path, plan.run_id)
    group = state.supervisor if state else None
    running = bool(processes.of_run(plan.run_id, group))
    supervisor = group.process() if group else None
    if supervisor is not None:
        supervisor.terminate()
        try:
            supervisor.wait(node.stop_grace + _STOP_SLACK)
        except psutil.TimeoutExpired:
            pass  # it hangs, so it is ended below like everything else
    left = processes.end(lambda: processes.of_run(plan.run_id, group), grace=2.0)
    if left:
        return {"ok": False, "ended": True, "message": f"still there after SIGKILL: {[p.pid for p in left]}"}
    state = read_state(path, plan.run_id)
    if state and state.phase not in ENDED:
        state.changed(phase="stopped", ended=time.time()).write(path)
    if running and plan.after_stop:
        after = subprocess.run(["bash", "-c", plan.after_stop], capture_output=True, text=True, cwd=node.cwd)
        if after.returncode:
            what = f"experiment.cmds.after_stop failed with exit code {after.returncode}: {after.stderr.strip()}"
            return {"ok": False, "ended": running, "message": what}
    return {"ok": True, "ended": running, "message": "stopped" if running else "nothing was running"}


def status(exp_dir: str, rank: str) -> Reply:
    """Return this host's state as recorded, corrected where the recorded supervisor is not there any more.

    Reply: the fields of `HostState`, and "processes": how many of the run live; {} where the run left no state.
    """
    plan, node = load(exp_dir, rank)
    path = RunDir(Path(exp_dir)).state(node.host)
    state = read_state(path, plan.run_id)
    if state is None:
        return {}
    alive = processes.of_run(plan.run_id, state.supervisor) if state.phase not in ENDED else set()
    if state.phase not in ENDED and not (state.supervisor and state.supervisor.process()):
        # Its guard may be writing the end of the story at this moment; if so, that one is better.
        state = read_state(path, plan.run_id) or state
        if state.phase not in ENDED:
            state = _gone(state)
    return {**asdict(state), "processes": len(alive)}


def _gone(state: HostState) -> HostState:
    failure = Failure("the supervisor is gone without a word: killed, or the host was restarted")
    return state.changed(phase="failed", exit_code=1, failure=failure)


def probe(directory: str, platform: str, distribution: str, port: str) -> Reply:
    """Return what a preflight compares: versions, devices, free disk below `directory`, whether `port` is free."""
    try:
        engine = version(distribution)
    except PackageNotFoundError:
        engine = ""
    existing = next(path for path in (Path(directory), *Path(directory).parents) if path.is_dir())
    return {
        "flagscale": __version__,
        "engine": engine,
        "devices": platforms.find(platform).count_devices() if platform in registry.names("platforms") else 0,
        "disk_free": shutil.disk_usage(existing).free,
        "writable": os.access(existing, os.W_OK),
        "port_free": not int(port) or _is_free(int(port)),
    }


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
        return True


COMMANDS: Mapping[str, Callable[..., Reply]] = {"start": start, "stop": stop, "status": status, "probe": probe}


def execute(words: list[str]) -> Reply:
    """Perform one command; an expected failure becomes {"ok": False, "message": ...}."""
    verb, *arguments = words
    try:
        return COMMANDS[verb](*arguments)
    except FlagScaleError as error:
        return {"ok": False, "message": str(error)}
    except OSError as error:
        return {"ok": False, "message": f"{error.filename or 'file system'}: {error.strerror}"}
