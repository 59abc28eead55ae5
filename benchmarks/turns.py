"""Training jobs on pinned CPU cores that run side by side and take turns, for comparisons.

The speed of a machine changes from minute to minute, so jobs to be compared share its time in slices of some
seconds: the jobs of one turn run at the same time, then they are stopped and the next ones continue. Each
rank has a clock that stands still while it is stopped. (A job that only waits would also cost the others
time: each of gloo's threads, one per process group, polls a hundred times per second.)

    python -m benchmarks.turns SOCKET JOB ARGUMENTS OF MEGATRON...     # the command of each rank of a job
"""

from __future__ import annotations

import functools
import mmap
import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, wait
from pathlib import Path
from typing import Any

from flagscale.checks.hetero.layout import Mesh
from flagscale_testing.ports import free_port
from flagscale_testing.ranks.training import ROOT, environment

_DOOR = "door"

_SLICE = 4.0
"""Seconds per turn: each pause costs some milliseconds, because the pipeline has to restart."""

Note = Mapping[str, float]
"""The seconds of one step of one rank, and how much of it the rank computed, posted and waited."""


class Clock:
    """Seconds for which a process was not stopped; its stopper records the stopped time in a file."""

    def __init__(self, file: Path) -> None:
        if not file.exists():
            file.write_bytes(bytes(8))
        with file.open("r+b") as opened:
            self._stopped = memoryview(mmap.mmap(opened.fileno(), 8)).cast("d")
        self._since = 0.0

    def __call__(self) -> float:
        return time.monotonic() - self._stopped[0]

    def stop(self) -> None:
        """Record that the process is stopped from now on."""
        self._since = time.monotonic()

    def go_on(self) -> None:
        """Record that the process is about to continue."""
        self._stopped[0] += time.monotonic() - self._since


@dataclass(frozen=True)
class Chip:
    """A mesh on a kind of chip: its core, and the features of it that its ranks may use."""

    mesh: Mesh
    core: int
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A training job over some chips; each has its own torchrun, as hosts do."""

    name: str
    chips: Sequence[Chip]
    argv: Sequence[str]
    worker: str = "benchmarks.turns"

    @property
    def ranks(self) -> int:
        return sum(chip.mesh.ranks for chip in self.chips)


@dataclass(frozen=True)
class Outcome:
    """The seconds of each step and, per rank, how long it computed, posted messages and waited per step."""

    steps: tuple[float, ...]
    ranks: list[dict[str, float]]


@dataclass(frozen=True)
class Rank:
    """A rank of a running job: its connection for reports after each step, its process, and its clock."""

    job: str
    connection: Connection
    process: int
    clock: Clock


def in_turns(folder: Path, turns: Sequence[Sequence[Job]], steps: int) -> list[Outcome]:
    """Let jobs train in turns until each has completed `steps` steps, and one more as a warm-up.

    The jobs of one turn run at the same time. Each job has a folder. Fast jobs complete more steps.

    Raises:
        SystemExit: a job failed; includes the end of all jobs' output.
    """
    jobs = [job for turn in turns for job in turn]
    folder.mkdir(parents=True, exist_ok=True)
    processes: list[subprocess.Popen[bytes]] = []
    ranks: list[Rank] = []
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(folder / _DOOR))
        door.listen()
        try:
            for job in jobs:
                processes += _start(folder, job)
            ranks += _ranks(door, folder, jobs, processes)
            _stop(ranks)
            notes = _run(ranks, [[job.name for job in turn] for turn in turns], steps)
        except (EOFError, ConnectionError, ProcessLookupError):
            outputs = [file.read_text()[-3000:] for file in sorted(folder.glob("*/output_*"))]
            raise SystemExit("\n\n".join(["a job failed:", *outputs])) from None
        finally:
            for rank in ranks:
                with suppress(ProcessLookupError):
                    os.kill(rank.process, signal.SIGKILL)
            for process in processes:
                process.terminate()
                process.wait()
    return [_outcome([notes[rank.connection] for rank in ranks if rank.job == job.name]) for job in jobs]


def _run(ranks: Sequence[Rank], turns: Sequence[Sequence[str]], steps: int) -> dict[Connection, list[Note]]:
    """Give every turn a slice of time, again and again. Return the notes of each rank on its steps."""
    notes: dict[Connection, list[Note]] = {rank.connection: [] for rank in ranks}
    while min(len(noted) for noted in notes.values()) <= steps:
        for turn in turns:
            running = [rank for rank in ranks if rank.job in turn]
            end = time.monotonic() + _SLICE
            _go_on(running)
            while (left := end - time.monotonic()) > 0:
                for connection in wait([rank.connection for rank in running], left):
                    assert isinstance(connection, Connection)
                    notes[connection].append(connection.recv())
            _stop(running)
    return notes


def _stop(ranks: Sequence[Rank]) -> None:
    for rank in ranks:
        os.kill(rank.process, signal.SIGSTOP)
        rank.clock.stop()


def _go_on(ranks: Sequence[Rank]) -> None:
    for rank in ranks:
        rank.clock.go_on()
        os.kill(rank.process, signal.SIGCONT)


def _ranks(
    door: socket.socket, folder: Path, jobs: Sequence[Job], processes: Sequence[subprocess.Popen[bytes]]
) -> list[Rank]:
    """Return all ranks of the jobs in order, once all wait for their first step."""
    found: dict[tuple[str, int], Rank] = {}
    door.settimeout(1)
    while len(found) < sum(job.ranks for job in jobs):
        try:
            caller, _ = door.accept()
        except TimeoutError:
            if any(process.poll() is not None for process in processes):
                raise EOFError from None
            continue
        connection = Connection(caller.detach())
        name, rank, process = connection.recv()
        found[name, rank] = Rank(name, connection, process, Clock(folder / name / f"clock_{rank}"))
    for one in found.values():
        one.connection.send(None)
    return [found[key] for key in sorted(found)]


def _start(folder: Path, job: Job) -> list[subprocess.Popen[bytes]]:
    (folder / job.name).mkdir()
    port = free_port()
    processes = []
    for rank, chip in enumerate(job.chips):
        command = shlex.split(f"""
            taskset -c {chip.core} {sys.executable} -m megatron.flagscale.torchrun
            --nnodes {len(job.chips)} --node-rank {rank} --nproc-per-node {chip.mesh.ranks}
            --master-addr 127.0.0.1 --master-port {port} -m {job.worker} {folder / _DOOR} {job.name}
        """)
        with (folder / job.name / f"output_{rank}").open("w") as output:
            processes.append(
                subprocess.Popen(
                    [*command, *job.argv],
                    cwd=ROOT,
                    env=environment(**chip.environment),
                    stdout=output,
                    stderr=output,
                )
            )
    return processes


def _outcome(ranks: Sequence[Sequence[Note]]) -> Outcome:
    """Return a job's outcome from its ranks' notes: of all common steps except the first."""
    counted = [noted[1 : min(len(each) for each in ranks)] for noted in ranks]
    return Outcome(
        tuple(max(note["step"] for note in step) for step in zip(*counted, strict=True)),
        [{name: statistics.mean(note[name] for note in noted) for name in noted[0]} for noted in counted],
    )


def work(door: str, job: str, argv: list[str]) -> None:
    """Train in this process until it is killed; report how each step spent its time."""
    from megatron.flagscale.bootstrap import patch_engine

    patch_engine()
    from megatron.training import training

    from megatron.flagscale.program import train as train_gpt

    spent = {"post": 0.0, "wait": 0.0}
    rank = int(os.environ["RANK"])
    clock = Clock(Path(door).parent / job / f"clock_{rank}")
    turns = Client(door)
    is_first = True

    def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*positional: Any, **named: Any) -> Any:
            begun = clock()
            outcome = function(*positional, **named)
            spent[name] += clock() - begun
            return outcome

        return call

    step = training.train_step

    def train_step(*positional: Any, **named: Any) -> Any:
        nonlocal is_first
        if is_first:
            is_first = False
            turns.send((job, rank, os.getpid()))
            turns.recv()
        spent.update(dict.fromkeys(spent, 0.0))
        begun = clock()
        outcome = step(*positional, **named)
        took = clock() - begun
        turns.send({**spent, "compute": took - sum(spent.values()), "step": took})
        return outcome

    training.train_step = train_step
    if "--hetero-layout" in argv:
        from megatron.flagscale.hetero.lane import Arrival, Lane

        for owner, method, name in (
            (Lane, "send", "post"),
            (Lane, "expect", "post"),
            (Arrival, "wait", "wait"),
        ):
            setattr(owner, method, timed(name, getattr(owner, method)))
    train_gpt(argv)


if __name__ == "__main__":
    work(sys.argv[1], sys.argv[2], sys.argv[3:])
