"""Fixtures for jobs without an engine: a plan whose agent is `fake_agent.py`, in real processes."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from flagscale.node.processes import alive, living, of_run
from flagscale.remote import launcher
from flagscale.remote.launcher import HostStatus
from flagscale.run.env import RUN_ID, run_tags
from flagscale.run.rundir import RunDir
from flagscale.run.state import HostState, Reply, read_state
from flagscale.values import Host, LaunchPlan, NodeCommand
from flagscale_testing.jobs.plans import AGENT, fake_plan, launch

ROOT = Path(__file__).resolve().parents[2]
_NUMBERS = itertools.count()


def wait_for[Result](condition: Callable[[], Result], seconds: float = 10) -> Result:
    """Return the first true result of a condition."""
    end = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
    return result


@dataclass(frozen=True)
class FakeJob:
    """One plan with its own run directory."""

    plan: LaunchPlan

    @property
    def files(self) -> RunDir:
        return RunDir(Path(self.plan.exp_dir))

    @property
    def host(self) -> Host:
        return self.plan.nodes[0].host

    @property
    def report(self) -> Path:
        return self.files.path / f"report {self.plan.run_id}"

    def start(self, secrets: Mapping[str, str] | None = None) -> FakeJob:
        launcher.start(self.plan, "config: text\n", secrets or {})
        return self

    def agent_report(self) -> dict[str, Any]:
        """Return what the fake agent found and started."""
        return dict(wait_for(lambda: self.report.exists() and json.loads(self.report.read_text())))

    def ranks(self) -> dict[str, psutil.Process]:
        return {name: psutil.Process(pid) for name, pid in self.agent_report()["pids"].items()}

    def state(self) -> HostState:
        state = read_state(self.files.state(self.host), self.plan.run_id)
        assert state is not None
        return state

    def member(self, name: str) -> psutil.Process:
        """Return the supervisor, guard or engine."""
        known = getattr(self.state(), name)
        assert known is not None
        process = living(known)
        assert process is not None
        return process

    def everything(self) -> list[psutil.Process]:
        """Return every process of the job, even those that their environment does not identify."""
        state = self.state()
        known = [living(found) for found in (state.supervisor, state.guard, state.engine) if found]
        return [*self.ranks().values(), *(process for process in known if process)]

    def stop(self) -> Reply:
        return launcher.stop(self.plan)[self.host]

    def status(self) -> HostStatus:
        return launcher.status(self.plan)[0]

    def is_gone(self) -> bool:
        return not of_run(self.plan.run_id)

    def log(self) -> str:
        return self.files.output(self.host).read_text()

    def launch(self, **changes: Any) -> subprocess.Popen[str]:
        """Start the job from a separate process, as a command does."""
        return launch(self.plan, self.files.path, dict(os.environ), **changes)

    def clean_up(self) -> None:
        """Kill what is left: by run id, and bare ranks by the report's path in their command line."""
        for process in psutil.process_iter():
            try:
                if str(self.report) in process.cmdline():
                    process.kill()
            except psutil.Error:
                continue
        while left := of_run(self.plan.run_id):
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.05)


def fake_job(
    exp_dir: Path, *behaviours: str, env: Mapping[str, str] | None = None, **changes: Any
) -> FakeJob:
    """Return a job of one host. `changes` replace fields of the plan or of its node command."""
    exp_dir.mkdir(parents=True, exist_ok=True)
    run_id = f"test-{os.getpid()}-{next(_NUMBERS)}"
    host = Host(rank=0, name="localhost", slots=max(1, len(behaviours)), platform="cpu")
    files = RunDir(exp_dir)
    node = NodeCommand(
        host=host,
        argv=(sys.executable, "-S", str(AGENT), str(exp_dir / f"report {run_id}"), *behaviours),
        env={**run_tags(run_id, 0), **(env or {})},
        cwd=str(exp_dir),
        failure_file=str(files.failure(host)),
        stop_grace=1.0,
    )
    of_node = {name: changes.pop(name) for name in ("argv", "cwd", "stop_grace") if name in changes}
    plan = fake_plan(exp_dir, run_id, [replace(node, **of_node)], start_timeout=20.0)
    return FakeJob(replace(plan, **changes))


@pytest.fixture
def make_job(tmp_path: Path) -> Iterator[Callable[..., FakeJob]]:
    """A function that makes jobs in the same run directory; what a failed test leaves running is killed."""
    made: list[FakeJob] = []

    def make(*behaviours: str, exp_dir: Path = tmp_path, **changes: Any) -> FakeJob:
        made.append(fake_job(exp_dir, *behaviours, **changes))
        return made[-1]

    yield make
    for job in made:
        job.clean_up()


@pytest.fixture
def decoys(tmp_path: Path) -> Iterator[list[psutil.Process]]:
    """Processes of the same user and command, of another run or of none; all must survive the test."""
    others = [
        subprocess.Popen(
            [sys.executable, "-S", str(AGENT), str(tmp_path / f"report {run_id}"), "rank", "rank deaf"],
            env={**os.environ, **({RUN_ID: run_id} if run_id else {})},
            start_new_session=True,
        )
        for run_id in ("", "another-run")
    ]
    processes = [psutil.Process(other.pid) for other in others]
    for process in list(processes):
        processes += wait_for(lambda process=process: len(found := process.children()) == 2 and found)  # type: ignore[misc]
    yield processes
    survivors = [process for process in processes if alive(process)]
    for other in others:
        os.killpg(other.pid, signal.SIGKILL)
        other.wait()
    assert survivors == processes
