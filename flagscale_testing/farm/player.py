"""The process that plays the hosts of a `PlayedFarm`: `python -m flagscale_testing.farm.player FOLDER`.

A host answers the launcher's requests as `python -m flagscale.node` would there. The supervisors of all
hosts find each other at once, but begin only together, and each gives up when the others take too long.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import asyncssh

from flagscale import __version__
from flagscale.node.commands import HELLO
from flagscale.run.rundir import RunDir
from flagscale.run.state import HostState, Reply
from flagscale.values import Host
from flagscale_testing.farm.parts import Part

_BACKLOG = 100
_SUPERVISES = " supervise "
"""In the command of a session that becomes the supervisor when it is asked to start (`flagscale.node`)."""
_MEMBER_MARGIN = 8.0
"""Seconds that a supervisor waits beyond `start_timeout` (`flagscale.node.member`)."""


@dataclass
class Scene:
    """What the hosts of one run know together."""

    hosts: int
    start_timeout: float
    started: set[str] = field(default_factory=set)
    """The hosts whose supervisors are ready."""
    stopped: set[str] = field(default_factory=set)
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when all supervisors are ready, or when one was stopped, which all the others hear."""


class Play:
    """Everything that the hosts share: their runs, and the record of events."""

    def __init__(self, folder: Path) -> None:
        self._events = (folder / "events").open("w", buffering=1)
        self._runs: dict[str, Scene] = {}

    def note(self, host: str, event: str) -> None:
        self._events.write(json.dumps({"time": time.monotonic(), "host": host, "event": event}) + "\n")

    def run(self, exp_dir: str, run_id: str) -> Scene:
        if run_id not in self._runs:
            # As JSON: the launcher under test may write another version of the plan.
            plan = json.loads(RunDir(Path(exp_dir)).plan.read_text())
            self._runs[run_id] = Scene(len(plan["nodes"]), plan["start_timeout"])
        return self._runs[run_id]


class PlayedHost:
    """One host: answers the verbs of `flagscale.node.commands`."""

    def __init__(self, part: Part, play: Play) -> None:
        self.part, self._play = part, play

    def note(self, event: str) -> None:
        self._play.note(self.part.address, event)

    async def execute(self, words: list[str]) -> Reply:
        """Perform one request; raises ConnectionResetError if the connection is to be lost instead."""
        verb, *arguments = words
        self.note(verb)
        if verb in ("vacant", "put", "ready"):
            return {"ok": True}
        if verb == "outcome":
            return {"ok": False, "message": arguments[-1]}
        exp_dir, rank, run_id, *_ = arguments
        if verb == "start":  # its supervisor reads the secrets first of all
            secrets = RunDir(Path(exp_dir)).secrets(Host(int(rank), self.part.address, 1, "cpu"))
            await asyncio.to_thread(secrets.unlink, missing_ok=True)
        answers: dict[str, Callable[[Scene, str], Awaitable[Reply]]] = {
            "start": self._start,
            "stop": self._stop,
            "status": self._status,
        }
        return await answers[verb](self._play.run(exp_dir, run_id), run_id)

    async def _start(self, run: Scene, run_id: str) -> Reply:
        fault = self.part.fault or ""
        if fault in ("start", "lost"):
            return self._fail(fault)
        await asyncio.sleep(self.part.start)
        if fault in ("late start", "late loss"):
            return self._fail(fault)
        if self.part.address in run.stopped:
            return {"ok": False, "message": "stopped before it started", "stopped": True}
        run.started.add(self.part.address)
        self.note("started")
        if len(run.started) == run.hosts:
            run.settled.set()
        try:
            async with asyncio.timeout(run.start_timeout + _MEMBER_MARGIN):
                await run.settled.wait()
        except TimeoutError:
            late = run.hosts - len(run.started)
            run.started.discard(self.part.address)
            return {"ok": False, "message": f"not heard from within {run.start_timeout:g} s: {late} hosts"}
        if run.stopped:
            await asyncio.sleep(self.part.stop)
            self._gone(run)
            return {"ok": False, "message": "stopped", "stopped": True}
        return {"ok": True, "message": "running"}

    def _fail(self, fault: str) -> Reply:
        if fault.endswith(("lost", "loss")):
            raise ConnectionResetError
        what = "experiment.cmds.before_start ended with exit code 3: no such module"
        return {"ok": False, "message": what}

    def _gone(self, run: Scene) -> None:
        """Note once that its supervisor has ended."""
        if self.part.address in run.started:
            run.started.discard(self.part.address)
            self.note("stopped")

    async def _stop(self, run: Scene, run_id: str) -> Reply:
        was_running = self.part.address in run.started
        run.stopped.add(self.part.address)
        if was_running:
            run.settled.set()
            await asyncio.sleep(self.part.stop)
            self._gone(run)
        message = "stopped" if was_running else "nothing was running"
        return {"ok": True, "ended": was_running, "message": message}

    async def _status(self, run: Scene, run_id: str) -> Reply:
        phase = "running" if len(run.started) == run.hosts else "starting"
        state = HostState(run_id, phase if self.part.address in run.started else "stopped")  # type: ignore[arg-type]
        return {**asdict(state), "processes": 0}

    async def session(self, process: asyncssh.SSHServerProcess[str]) -> None:
        """Play the remote command of one connection."""
        fault = self.part.fault
        try:
            if fault == "ends":
                return process.exit(0)
            await asyncio.sleep(self.part.hello)
            if self.part.noise:
                process.stdout.write("Welcome to this host!\n")
            if fault == "shell":
                process.stderr.write("bash: line 1: python: No such file or directory\n")
                return process.exit(127)
            process.stdout.write(
                "\n" + json.dumps({HELLO: "0.0.1" if fault == "version" else __version__}) + "\n"
            )
            await self._serve(process)
            process.exit(0)
        except (asyncssh.Error, ConnectionError, BrokenPipeError):
            process.channel.get_connection().abort()
        finally:
            self.note("gone")

    async def _serve(self, process: asyncssh.SSHServerProcess[str]) -> None:
        """Answer the requests in their order; a later one is performed while an earlier one still waits."""
        replies: asyncio.Queue[asyncio.Task[Reply] | None] = asyncio.Queue()

        async def answer() -> None:
            while task := await replies.get():
                process.stdout.write(json.dumps(await task) + "\n")

        async with asyncio.TaskGroup() as group:
            group.create_task(answer())
            while line := await process.stdin.readline():
                words: list[str] = json.loads(line)
                replies.put_nowait(group.create_task(self.execute(words)))
                if words[0] == "start" and _SUPERVISES in (process.command or ""):
                    break  # the session has become the supervisor: it answers once
            replies.put_nowait(None)


class Login(asyncssh.SSHServer):
    """The login of one connection: any offered key of the user is right, unless the part says otherwise."""

    def __init__(self, host: PlayedHost) -> None:
        self._host = host

    async def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        await asyncio.sleep(self._host.part.login)
        return self._host.part.fault != "login"

    def public_key_auth_supported(self) -> bool:
        return True

    def auth_completed(self) -> None:
        self._host.note("login")


async def play(folder: Path) -> None:
    """Play all hosts until the standard input ends."""
    given: dict[str, Any] = json.loads((folder / "parts.json").read_text())
    told, port = Play(folder), given["port"]
    shared = {
        "server_host_keys": [str(folder / "host_key")],
        "login_timeout": 600,
        "keepalive_interval": 0,
        "line_editor": False,
    }
    servers: list[object] = []
    for one in given["parts"]:
        part = Part(**one)
        if part.fault == "refused":
            continue
        if part.fault == "silent":
            servers.append(await asyncio.start_server(_say_nothing, part.address, port))
            continue
        host = PlayedHost(part, told)
        options = asyncssh.SSHServerConnectionOptions(
            server_factory=lambda host=host: Login(host),
            process_factory=host.session,
            **shared,
        )
        servers.append(await asyncssh.listen(part.address, port, options=options, backlog=_BACKLOG))
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def _say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    while await reader.read(1 << 16):
        pass


def main(folder: str) -> None:
    """Raise the limit of open files, and play, before other processes: real hosts have cores of their own."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with suppress(PermissionError):
        os.nice(-10)
    asyncio.run(play(Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1])
