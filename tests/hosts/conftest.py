"""Jobs on the hosts of a farm: real connections and supervisors around the fake agent."""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from flagscale.node.network import is_free
from flagscale.remote import launcher
from flagscale.remote.transport import transport
from flagscale.run.env import run_tags
from flagscale.run.rundir import RunDir
from flagscale.run.state import HostState, Reply
from flagscale.status.model import JobStatus
from flagscale.status.watch import current_status
from flagscale.values import Channel, Host, LaunchPlan, NodeCommand, Recovery
from flagscale_testing.farm.credentials import FarmHost
from flagscale_testing.farm.farm import Farm, alive, wait_until
from flagscale_testing.farm.fixtures import (
    MakeLoopbackFarm,
    make_loopback_farm,  # noqa: F401
    make_namespace_farm,  # noqa: F401
)
from flagscale_testing.farm.namespaces import NamespaceFarm
from flagscale_testing.jobs.plans import AGENT, fake_plan, launch

ROOT = Path(__file__).resolve().parents[2]
HOSTILE = 'a b\'c"d $HOME $(touch hostile-x) `touch hostile-x`; touch hostile-x & #{}\\ \n ünï-中文 {"k": 1}'
"""Creates a file `hostile-x` in the current directory if a shell interprets it."""
CLEAN_WITHIN = 10.0
"""Seconds after a death within which all processes of the run must end on the remaining hosts."""
_FAKE_AGENT = [sys.executable, "-S", str(AGENT)]
_NUMBERS = itertools.count()


@dataclass(frozen=True)
class FarmJob:
    """A plan for the first hosts of a farm; host `n` of the job is host `n` of the farm."""

    plan: LaunchPlan
    farm: Farm

    @property
    def files(self) -> RunDir:
        return RunDir(Path(self.plan.exp_dir))

    @property
    def hosts(self) -> tuple[FarmHost, ...]:
        return self.farm.hosts[: len(self.plan.nodes)]

    def start(self, secrets: Mapping[str, str] | None = None) -> FarmJob:
        launcher.start(self.plan, "config: text\n", secrets or {})
        return self

    def launch(self) -> subprocess.Popen[str]:
        """Start the job from a separate process, as a command does."""
        return launch(self.plan, self.farm.directory, self.farm.environment())

    def command(self, action: str, *more: str) -> subprocess.CompletedProcess[str]:
        """Perform an action of `run.py` that reads the recorded plan."""
        words = ["--config-path", str(ROOT / "examples/aquila/conf"), "--config-name", "config"]
        return subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *words, f"action={action}",
             f"experiment.exp_dir={self.plan.exp_dir}", *more],
            env=self.farm.environment(), capture_output=True, text=True, timeout=60, cwd=self.farm.directory,
        )  # fmt: skip

    def launch_stop(self) -> subprocess.Popen[bytes]:
        """Stop the job from a separate process, as a command does."""
        program = (
            "import sys; from pathlib import Path; from flagscale.remote import launcher\n"
            "from flagscale.run.rundir import RunDir\n"
            "launcher.stop(RunDir(Path(sys.argv[1])).read_plan())"
        )
        words = [sys.executable, "-c", program, self.plan.exp_dir]
        return subprocess.Popen(words, env={**self.farm.environment(), "PYTHONPATH": str(ROOT)})

    def stop(self) -> dict[int, Reply]:
        """Stop the job; return the replies by host rank."""
        return {host.rank: reply for host, reply in launcher.stop(self.plan).items()}

    def status(self) -> JobStatus:
        return current_status(self.plan)

    def states(self) -> list[HostState | None]:
        return [host.state for host in launcher.status(self.plan)]

    def phases(self) -> list[str]:
        return [state.phase if state else "unknown" for state in self.states()]

    def first_failure(self) -> tuple[int, str]:
        """Return the rank of the host and the message that a query shows."""
        reported = self.status().failure
        assert reported is not None
        name, failure = reported
        return next(host.rank for host in self.plan.hosts if host.name == name), failure.message

    def log(self, rank: int) -> str:
        return self._read(rank, str(RunDir(Path(self._there(rank).exp_dir)).output(self.plan.hosts[rank])))

    def agent_report(self, rank: int) -> dict[str, Any]:
        """Return what the fake agent of a host found and started in the current attempt."""
        report = next(word for word in self._there(rank).node(rank).argv if "report " in word)
        reported: dict[str, Any] = {}

        def has_reported() -> bool:
            with suppress(ValueError):
                reported.update(json.loads(self._read(rank, report)))
            return bool(reported)

        wait_until(has_reported, f"the report of host {rank}")
        return reported

    def member(self, rank: int, name: str) -> psutil.Process:
        """Return the supervisor, guard or engine of a host, as seen from this machine."""
        (found,) = self.members(rank, name)
        return found

    def members(self, rank: int, name: str) -> list[psutil.Process]:
        """Return the same as a list, which is empty if there is no such process."""
        mark = f"{AGENT} " if name == "engine" else "flagscale.node supervise"
        found = [
            process
            for process in self.left(self.hosts[rank])
            if mark in (line := command_line(process)) and self.plan.run_id in line
        ]
        # A fork that has not yet run its program has the same command line but is younger, like the guard.
        found.sort(key=_age)
        return found[1:2] if name == "guard" else found[:1]

    def engines(self) -> set[psutil.Process]:
        return {engine for rank in range(len(self.hosts)) for engine in self.members(rank, "engine")}

    def wait_until_clean(self, *ranks: int, seconds: float = CLEAN_WITHIN) -> float:
        """Wait until no process of the run is left on these hosts (default: all); return the seconds."""
        hosts = [self.hosts[rank] for rank in ranks or range(len(self.hosts))]
        begun = time.monotonic()
        try:
            wait_until(lambda: not any(self.left(host) for host in hosts), "the end of the run", seconds)
        except TimeoutError:
            lines = [f"{host.name}: {command_line(one)}" for host in hosts for one in self.left(host)]
            pytest.fail("\n".join([f"left after {seconds:g} s:", *lines]))
        return time.monotonic() - begun

    def wait_for_engines(
        self, *ranks: int, besides: Set[psutil.Process] = frozenset(), seconds: float = 30
    ) -> None:
        """Wait until these hosts (default: all) have an engine other than `besides`."""
        chosen = ranks or range(len(self.hosts))
        wait_until(
            lambda: all(set(self.members(rank, "engine")) - besides for rank in chosen),
            "the engines",
            seconds,
        )

    def left(self, host: FarmHost) -> list[psutil.Process]:
        """Return the processes of this run on a host; the run tags distinguish them from decoys."""
        return [process for process in left(self.farm, host) if run_of(process) == self.plan.run_id]

    def _there(self, rank: int) -> LaunchPlan:
        return self.plan.on_host(self.plan.hosts[rank].name)

    def _read(self, rank: int, path: str) -> str:
        return self.farm.run(self.hosts[rank], ["cat", path]).stdout


def farm_job(farm: Farm, exp_dir: Path, *behaviours: str, hosts: int = 3, **changes: Any) -> FarmJob:
    """Return a job of the fake agent on the first hosts of a farm.

    Args:
        changes: fields of the plan, or `env`, `argv` and `options` (functions of the rank: more words, and
            torchrun's options), `stop_grace` and `engine_program` (replaces the fake agent).
    """
    exp_dir.mkdir(parents=True, exist_ok=True)
    run_id = f"hosts-{os.getpid()}-{next(_NUMBERS)}"
    files = RunDir(exp_dir)
    env = changes.pop("env", {})
    argv: Callable[[int], tuple[str, ...]] = changes.pop("argv", lambda rank: ())
    options: Callable[[int], dict[str, str]] = changes.pop("options", lambda rank: {})
    stop_grace = changes.pop("stop_grace", 1.0)
    program = [changes.pop("engine_program")] if "engine_program" in changes else _FAKE_AGENT
    nodes = []
    for rank, farm_host in enumerate(farm.hosts[:hosts]):
        host = Host(rank=rank, name=farm_host.address, slots=max(1, len(behaviours)), platform="cpu")
        report = str(exp_dir / f"report {run_id} {rank}")
        nodes.append(
            NodeCommand(
                host=host,
                argv=(*program, report, *behaviours, *argv(rank)),
                env={
                    **run_tags(run_id, rank),
                    "LOCAL_RANK": "0",
                    "FLAGSCALE_HEARTBEAT_FILE": str(files.heartbeat(host)),
                    **env,
                },
                cwd=str(exp_dir),
                failure_file=str(files.failure(host)),
                stop_grace=stop_grace,
                options=options(rank),
            )
        )
    plan = fake_plan(
        exp_dir,
        run_id,
        nodes,
        start_timeout=30.0,
        channel=Channel(farm.hosts[0].address, _channel_port(farm)),
        recovery=Recovery(restart_timeout=20.0),
        connect_timeout=20.0,
    )
    return FarmJob(replace(plan, **changes), farm)


def _channel_port(farm: Farm) -> int:
    """Return a free port: hosts with their own network have all ports free; loopback hosts share ours."""
    if isinstance(farm, NamespaceFarm):
        return 29501
    return next(
        port
        for port in random.sample(range(20000, 32000), 100)
        if is_free(farm.hosts[0].address, port) and port != farm.hosts[0].port
    )


@pytest.fixture(scope="module")
def running_farm(make_loopback_farm: MakeLoopbackFarm) -> Farm:  # noqa: F811
    """Three hosts of this machine; a module with other needs has a `running_farm` of its own."""
    return make_loopback_farm(3)


@pytest.fixture
def farm(running_farm: Farm, monkeypatch: pytest.MonkeyPatch) -> Iterator[Farm]:
    """The farm of the module, with its user acting."""
    with user_of(running_farm, monkeypatch):
        yield running_farm


@contextmanager
def user_of(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Act as the user of a farm for one test; afterwards reset its hosts, their sshd and the user's files."""
    monkeypatch.setenv("HOME", str(farm.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    changed = [farm.config, farm.home / ".ssh/known_hosts"]
    kept = [path.read_bytes() for path in changed]
    transport.cache_clear()
    try:
        yield
    finally:
        for path, content in zip(changed, kept, strict=True):
            path.write_bytes(content)
        transport.cache_clear()  # drops the last reference to the connections
        farm.start_sshd(*farm.hosts)
        for host in farm.hosts:
            wait_until(lambda host=host: not _kill_all(farm, host), f"an empty {host.name}")  # type: ignore[misc]


def _kill_all(farm: Farm, host: FarmHost) -> list[psutil.Process]:
    found = farm.processes(host)
    for process in found:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    return found


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., FarmJob]:
    """A function that makes jobs in the same run directory; `user_of` kills what a failed test leaves."""

    def make(farm: Farm, *behaviours: str, exp_dir: Path = tmp_path / "run", **changes: Any) -> FarmJob:
        return farm_job(farm, exp_dir, *behaviours, **changes)

    return make


@pytest.fixture
def decoys(farm: Farm, tmp_path: Path) -> Iterator[list[psutil.Process]]:
    """Processes on each host, of the same user and program, that belong to another run or to none."""
    started = []
    for host in farm.hosts:
        for run_id in ("", "another-run"):
            words = [
                sys.executable,
                "-S",
                str(AGENT),
                str(tmp_path / f"report {host.name} {run_id}"),
                "rank",
            ]
            mark = [f"{name}={value}" for name, value in run_tags(run_id, 0).items()] if run_id else []
            started.append(
                farm.keeper.start(farm.inside(host, ["env", *mark, *words]), tmp_path / "decoys.log")
            )
    everything: list[psutil.Process] = []

    def complete() -> bool:
        everything[:] = [one for host in farm.hosts for one in left(farm, host)]
        return sum(str(tmp_path / "report") in command_line(one) for one in everything) == 4 * len(farm.hosts)

    wait_until(complete, "the decoys")
    yield everything
    assert [one for one in everything if not alive(one)] == []


@contextmanager
def cut_off(farm: NamespaceFarm, host: FarmHost) -> Iterator[None]:
    """Cut a host off from the network for a while."""
    farm.cut(host)
    try:
        yield
    finally:
        farm.restore(host)


@contextmanager
def powered_off(farm: NamespaceFarm, host: FarmHost) -> Iterator[None]:
    """Power a host off for a while."""
    farm.power_off(host)
    try:
        yield
    finally:
        farm.power_on(host)


def left(farm: Farm, host: FarmHost) -> list[psutil.Process]:
    """Return the processes of a host, except for the sessions of launchers."""
    return [
        process
        for process in farm.processes(host)
        if (line := command_line(process)) and "flagscale.node serve" not in line
    ]


def command_line(process: psutil.Process) -> str:
    """Return the command line of a process, or "" if it is gone."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _age(process: psutil.Process) -> tuple[float, int]:
    return process.create_time(), process.pid  # was cached when the process was found


def run_of(process: psutil.Process) -> str | None:
    """Return the run id in the environment of a process."""
    try:
        return process.environ().get("FLAGSCALE_RUN_ID")
    except psutil.Error:
        return None


def logins(host: FarmHost) -> int:
    """Return how many connections the sshd of a host has accepted."""
    return host.log.read_text(errors="replace").count("Accepted publickey")


MakeJob = Callable[..., FarmJob]
