"""A real training job on three namespaced hosts, for fault injection: start it, watch it, stop it.

Figures are read at their source (processes of the hosts, state files, metrics), not by slow queries.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from flagscale.run.checkpoints import TRACKER
from flagscale.run.env import RUN_ID
from flagscale.run.rundir import RunDir
from flagscale.run.state import HostState, read_state
from flagscale_testing.farm.credentials import FarmHost
from flagscale_testing.farm.namespaces import NamespaceFarm
from flagscale_testing.jobs.demo import TINY, random_tokens

ROOT = Path(__file__).resolve().parents[1]
SAVE_INTERVAL = 10
OVERRIDES = (
    "experiment.runner.platform=cpu",
    "experiment.runner.nnodes=3",
    "experiment.runner.nproc_per_node=1",
    *TINY,
    "train.system.pipeline_model_parallel_size=1",
    f"train.system.checkpoint.save_interval={SAVE_INTERVAL}",
    "train.model.global_batch_size=3",
    "train.model.micro_batch_size=1",
    "train.model.train_iters=100000",
    "train.model.eval_iters=0",
    *random_tokens(1000),
)
# Megatron's training, with a thread that raises an exception or eats memory on request.
PROGRAM = """
import ctypes, os, runpy, threading, time

def watch():
    place = os.path.join({folder!r}, os.environ["RANK"] + ".")
    while True:
        time.sleep(0.05)
        if os.path.exists(place + "raise"):
            os.unlink(place + "raise")
            main = ctypes.c_ulong(threading.main_thread().ident)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(RuntimeError))
        if os.path.exists(place + "eat"):
            os.unlink(place + "eat")
            eaten = []
            while True:
                eaten.append(b"x" * 10_000_000)

threading.Thread(target=watch, daemon=True).start()
runpy.run_module("megatron.flagscale.train_gpt", run_name="__main__", alter_sys=True)
"""
PATIENCE = 180.0


def wait(holds: Callable[[], bool], what: str, seconds: float = PATIENCE) -> float:
    """Wait until `holds` returns true; return how long that took. The TimeoutError says `what` is wrong."""
    begun = time.monotonic()
    while not holds():
        if time.monotonic() - begun > seconds:
            raise TimeoutError(f"{what} after {seconds:g} s")
        time.sleep(0.02)
    return time.monotonic() - begun


@dataclass
class Drill:
    """One job with its own run directory, on all hosts of a farm."""

    farm: NamespaceFarm
    folder: Path
    overrides: tuple[str, ...] = ()
    decoys: list[psutil.Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.folder.mkdir()
        (self.folder / "train.py").write_text(PROGRAM.format(folder=str(self.folder)))
        self.files = RunDir(self.folder / "run")

    def begin(self, action: str, *more: str) -> subprocess.Popen[str]:
        """Start a command of `run.py` without waiting for it."""
        words = [
            *("--config-path", str(ROOT / "examples/aquila/conf"), "--config-name", "config"),
            *OVERRIDES,
            f"experiment.exp_dir={self.files.path}",
            f"experiment.task.entrypoint={self.folder}/train.py",
            f"+experiment.runner.hostfile={self.farm.hostfile(slots=1)}",
            *self.overrides,
            f"action={action}",
        ]
        return subprocess.Popen(
            [sys.executable, str(ROOT / "run.py"), *words, *more],
            env={**self.farm.environment(), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.folder,
        )

    def do(self, action: str, *more: str) -> tuple[int, str]:
        """Run a command; return its exit code and its output."""
        command = self.begin(action, *more)
        printed, _ = command.communicate(timeout=PATIENCE)
        return command.returncode, printed

    def start(self) -> None:
        """Start the job and wait until it has continued after a checkpoint."""
        code, printed = self.do("run")
        assert code == 0, printed
        self.go_on()

    def go_on(self) -> None:
        """Wait for a checkpoint and a few more iterations."""
        wait(lambda: self.saved() > 0 and self.iteration() >= self.saved() + 3, "no checkpoint")

    def iterations_since(self, moment: float) -> list[int]:
        """Return the iterations that were completed after this time."""
        with suppress(FileNotFoundError, ValueError):  # there is no file yet, or a line is being written
            records = [json.loads(line) for line in self.files.metrics.read_text().splitlines()]
            found = [record for record in records if "iteration_ms" in record and record["time"] > moment]
            return [int(record["iteration"]) for record in found]
        return []

    def iteration(self) -> int:
        """Return the newest iteration of the job."""
        return max(self.iterations_since(0.0), default=0)

    def iterations_again(self) -> list[int]:
        """Return the iterations since the end of a failed attempt."""
        ended = [attempt.ended for state in self.states() if state for attempt in state.attempts]
        return self.iterations_since(max(ended)) if ended else []

    def saved(self) -> int:
        """Return the iteration of the newest complete checkpoint."""
        with suppress(OSError, ValueError):
            return int((self.checkpoints / TRACKER).read_text())
        return 0

    @property
    def checkpoints(self) -> Path:
        named = [word.partition("=")[2] for word in self.overrides if "checkpoint.save=" in word]
        return Path(named[0]) if named else self.files.checkpoints

    def states(self) -> list[HostState | None]:
        plan = self.files.read_plan()
        return [read_state(self.files.state(host), plan.run_id) for host in plan.hosts] if plan else []

    def has_noticed(self) -> bool:
        """Return whether the state of any host reports an end."""
        return any(state and (state.phase != "running" or state.attempts) for state in self.states())

    def processes(self, *hosts: FarmHost) -> list[psutil.Process]:
        """Return the processes on these hosts (default: all), without decoys."""
        found = [process for host in hosts or self.farm.hosts for process in self.farm.processes(host)]
        return [process for process in found if process not in self.decoys]

    def training(self) -> list[psutil.Process]:
        """Return the agents, ranks and data loaders of all hosts."""
        return [process for process in self.processes() if "train.py" in _line(process)]

    def find(self, host: int, kind: str) -> psutil.Process:
        """Return the rank or torchrun of a host, or a process of `flagscale.node` by its verb."""
        mark = {
            "rank": f"{self.folder}/train.py",
            "torchrun": "megatron.flagscale.torchrun",
        }.get(kind, f"flagscale.node {kind}")
        for process in sorted(self.processes(self.farm.hosts[host]), key=lambda process: process.pid):
            # A data loader has its rank's command line but is younger; torchrun's contains that of the rank.
            if mark in (line := _line(process)) and (kind != "rank" or "flagscale.torchrun" not in line):
                return process
        raise LookupError(f"no {kind} on host {host}")

    def has(self, host: int, kind: str) -> bool:
        with suppress(LookupError):
            return bool(self.find(host, kind))
        return False

    def failure_shown(self) -> str:
        """Return the failure that a query shows."""
        code, printed = self.do("query", "output=json")
        try:
            status = json.loads(printed)
        except ValueError:
            return printed.strip()[-200:]
        causes = [*status["attempts"], {"failure": status["failure"]}]
        message: str = next((cause["failure"]["message"] for cause in causes if cause["failure"]), "")
        return message or f"{status['state']} (exit code {code})"

    def clean_up(self) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()


def _line(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


@contextmanager
def mounted(place: Path, size: str) -> Iterator[None]:
    """Mount a small separate disk; hosts that are made later see it too."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def _write(path: Path, number: int) -> None:
    path.write_text(str(number))


@contextmanager
def small_memory(size: int) -> Iterator[Callable[[int], None]]:
    """A control group below ours that allows `size` more bytes; call the result with a pid to add it."""
    groups = [line.split(":") for line in Path("/proc/self/cgroup").read_text().splitlines()]
    own = next((path for _, controllers, path in groups if controllers == "memory"), None)
    if own is None:
        raise OSError("skipped: requires the memory controller of control groups v1")
    group = Path("/sys/fs/cgroup/memory") / own.lstrip("/") / f"flagscale-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(size))
        yield partial(_write, group / "cgroup.procs")
    finally:
        with suppress(OSError):
            group.rmdir()


def _sleepers(farm: NamespaceFarm, host: FarmHost) -> int:
    return sum("megatron.flagscale.torchrun" in _line(process) for process in farm.processes(host))


@contextmanager
def decoys(farm: NamespaceFarm, folder: Path) -> Iterator[list[psutil.Process]]:
    """Processes on each host, of the same user, that belong to another run or to none."""
    for host in farm.hosts:
        for number, marks in enumerate(([], [f"{RUN_ID}=another-run"])):
            program = "import time; time.sleep(1e6)"
            words = ["env", *marks, sys.executable, "-S", "-c", program, "megatron.flagscale.torchrun"]
            farm.keeper.start(farm.inside(host, words), folder / "decoys.log")
            wait(lambda host=host, count=number + 1: _sleepers(farm, host) == count, "no decoy")  # type: ignore[misc]
    found = [process for host in farm.hosts for process in farm.processes(host)]
    assert len(found) == 2 * len(farm.hosts), found
    yield found
    for process in found:
        with suppress(psutil.NoSuchProcess):
            os.kill(process.pid, signal.SIGKILL)
