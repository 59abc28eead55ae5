"""One process of a service: start it, check its health and progress, and say why it ended."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import urlsplit

from flagscale.linux import die_with, oom_kills
from flagscale.node import health, processes
from flagscale.node.devices import device_environment
from flagscale.node.instances import kind_of
from flagscale.node.service_log import ServiceLog
from flagscale.run.env import PROGRESS_FILE, SERVICE
from flagscale.run.failure import Failure, for_lack_of_memory, how_it_ended, signal_name
from flagscale.run.rundir import RunDir
from flagscale.run.state import OVER, ServicePhase, ServiceState
from flagscale.values import LaunchPlan, NodeCommand, Service

_LOOK = 1.0
"""Seconds between two checks of a service."""
_LOOK_AT_START = 0.25
"""The same for a server that has not answered yet."""
_LONGEST_LINE = 300


class ServiceMonitor:
    """A started service, with its output and its state."""

    def __init__(self, plan: LaunchPlan, node: NodeCommand, service: Service, restarts: int = 0) -> None:
        """Start the service. Raises OSError if that fails.

        Args:
            restarts: how often it was started before; its log then goes on.
        """
        self.service = service
        self._members = partial(processes.of_run, plan.run_id, node.host.rank, os.getpgrp())
        self.kind = kind_of(service, plan.services)
        files, host = RunDir(Path(plan.exp_dir)), node.host
        serves = plan.task_type == "serve"
        self._log = ServiceLog(files.service_log(host, service.name), service.name, restarts)
        self._progress = files.service_progress(host, service.name)
        self._lock = Lock()
        self._last_load: health.Load | None = None
        self._kills = oom_kills()
        self._why_killed = ""
        self.idle_at = 0.0
        """When the last check began that found a server without requests, by the monotonic clock."""
        self._silent_since: float | None = time.monotonic()
        self._unhealthy_since: float | None = self._silent_since
        """Since when a server was found so at every check; None if it was not at the last one."""
        self.has_answered = False
        """Whether a server was found healthy."""
        self.goes_on = not service.url
        """Whether it was found working at the last check; a server has to answer for that."""
        self._progress.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            service.argv,
            env={
                **os.environ,
                **device_environment(service, host),
                **service.env,
                PROGRESS_FILE: str(self._progress),
                SERVICE: service.name,
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            preexec_fn=partial(die_with, os.getpid()),
        )
        # A part of a server on another host answers no requests.
        phase: ServicePhase = "restarting" if restarts else "starting"
        self.state = ServiceState(
            service.name,
            "running" if serves and not service.url else phase,
            service.url,
            service.model,
            self.process.pid,
            since=time.time(),
            behind=service.behind,
            restarts=restarts,
        )
        # Its name precedes each of its lines if there are several.
        prefix = f"[{service.name}] " if len(node.services) > 1 else ""
        assert self.process.stdout is not None
        self._log.read(self.process.stdout, prefix, self._show)
        looking = self._look_at_server if service.url else self.look_at_progress
        if service.url or not serves:
            Thread(target=self._repeat, args=(looking,), daemon=True).start()

    @property
    def code(self) -> int | None:
        return self.process.poll()

    @property
    def silent_for(self) -> float:
        """Seconds without an answer of a server; for a router, any answer counts."""
        return _since(self._silent_since)

    @property
    def unhealthy_for(self) -> float:
        """Seconds for which a server was not healthy."""
        return _since(self._unhealthy_since)

    def kill(self, why: str) -> None:
        """Kill the service's process; its failure then says why."""
        self._why_killed = why
        self.process.kill()

    def enter(self, phase: ServicePhase) -> None:
        """Enter a phase, unless the service has ended."""
        with self._lock:
            if self.state.phase not in (phase, *OVER):
                self.state = self.state.entered(phase, time.time())

    def failure(self) -> Failure:
        """Return how the service ended, and why if its output says so."""
        self._log.wait_for_end(_LOOK)  # its last output explains its end
        code = self.code or 0
        name = signal_name(code)
        found = None if name else self._log.cause(code)
        how = self._why_killed or f"{how_it_ended(code)}{f': {found[0]}' if found else ''}"
        failure = Failure(
            message=f"`{self.service.name}` {how}",
            pid=self.process.pid,
            exitcode=code,
            signal=name,
            traceback="" if name else found[1] if found else self._log.last_lines(),
            log=str(self._log.path),
            time=time.time(),
        )
        ran_out = oom_kills() > self._kills and not self._why_killed
        return for_lack_of_memory(failure) if ran_out else failure

    def look_at_progress(self) -> None:
        """Read the progress that a service reports in its file."""
        try:
            reported = json.loads(self._progress.read_text(encoding="utf-8"))
            figures = {name: reported[name] for name in ("done", "total", "unit", "tokens_per_s")}
        except (OSError, ValueError, KeyError):
            return  # it has not reported anything yet
        self.enter("running")
        self._change(**figures)

    def _show(self, line: str) -> None:
        if self.state.phase in ("starting", "restarting"):
            self._change(last_line=line[:_LONGEST_LINE])

    def _repeat(self, look: Callable[[], None]) -> None:
        while self.code is None:
            look()
            is_loading = self.service.url and not self.has_answered
            time.sleep(_LOOK_AT_START if is_loading else _LOOK)

    def _look_at_server(self) -> None:
        """Update the state of a server, which is starting until it answers for the first time."""
        begun = time.monotonic()
        status = health.check(self.service.url)
        # Asked once, at the first answer: it looks at all processes of the host.
        if status == HTTPStatus.OK and not self.has_answered and self._is_another():
            where = self.service.url
            self.kill(f"was killed: another process answers at {where}; end it, or use another port")
            return
        self.goes_on = status == HTTPStatus.OK
        is_silent = not self.goes_on and not (status and self.kind == "router")
        self._silent_since = (self._silent_since or begun) if is_silent else None
        self._unhealthy_since = None if self.goes_on else self._unhealthy_since or begun
        if self.goes_on:
            self._kills = oom_kills()
            if not self.has_answered:
                self._log.ignore_errors_so_far()
            self.has_answered = True
            self.enter("ready")
            if self.kind != "router":  # the load of a router is that of its instances
                self._loaded(health.load(self.service.url), begun)
        elif self.has_answered:
            self.enter("unhealthy")

    def _is_another(self) -> bool:
        """Return whether it is another process that answers at the service's address.

        vLLM binds its port at once, but listens once the model is loaded: before, the port looks free.
        A router listens, or fails, at once.
        """
        if self.kind == "router":
            return False
        port = urlsplit(self.service.url).port or 0
        # Those of the whole job: a program that changes its title, as vLLM does, overwrites the environment
        # that names its service.
        return not processes.listen_on(port, self._members()) and self.code is None

    def _loaded(self, load: health.Load | None, begun: float) -> None:
        before, self._last_load = self._last_load, load
        if load is None:
            return
        if not load.running and not load.waiting:
            self.idle_at = begun
        seconds = load.time - before.time if before else 0.0
        rate = 1 / seconds if seconds > 0 else 0.0
        self._change(
            requests_running=load.running,
            requests_waiting=load.waiting,
            tokens_per_s=(load.generated - before.generated) * rate if before else 0.0,
            prompt_tokens_per_s=(load.prompted - before.prompted) * rate if before else 0.0,
        )

    def _change(self, **values: Any) -> None:
        """Change the state, unless the service has ended meanwhile."""
        with self._lock:
            if self.state.phase not in OVER:
                self.state = replace(self.state, **values)


def _since(begin: float | None) -> float:
    return 0.0 if begin is None else time.monotonic() - begin
