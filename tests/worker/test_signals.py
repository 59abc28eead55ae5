"""Requests to end a job, at any time, any number of them, at any of its processes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flagscale.node.processes import alive, of_run
from flagscale_testing.ranks.training import (
    MOCK_DATA,
    MODEL,
    PATIENCE,
    ended_at_last,
    environment,
    read_metrics,
    torchrun,
    wait_for,
)
from tests.node.conftest import FakeJob, fake_job

REQUESTS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
RANKS = 2

# A rank without torch that counts the requests, saves for a second, and starts a helper like Megatron does.
RANK = """
import os, pathlib, signal, sys, time
from megatron.flagscale.supervision import die_with_parent, ignore_sigterm, leave_requests_to_torchrun
die_with_parent()
leave_requests_to_torchrun()
asked = []
signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
folder, rank = pathlib.Path(sys.argv[1]), os.environ["RANK"]
(folder / f"ready {rank}").write_text(str(os.getpid()))
while not asked:
    time.sleep(0.02)
end = time.monotonic() + 1
while time.monotonic() < end:
    time.sleep(0.02)
(folder / f"saved {rank}").write_text(str(len(asked)))
ignore_sigterm()
"""


def write_rank(folder: Path, text: str = RANK) -> Path:
    path = folder / "rank.py"
    path.write_text(text)
    return path


def ready(folder: Path) -> list[psutil.Process]:
    """Return the ranks once they handle signals."""
    wait_for(lambda: len([one for one in folder.glob("ready *") if one.read_text()]) == RANKS)
    return [psutil.Process(int(one.read_text())) for one in folder.glob("ready *")]


def flood(process: subprocess.Popen[bytes], numbers: tuple[signal.Signals, ...]) -> int:
    """Signal a process without a pause until it ends; return its exit code."""
    end = time.monotonic() + PATIENCE
    for number in itertools.cycle(numbers):
        if process.poll() is not None:
            return process.returncode
        assert time.monotonic() < end, "waited too long"
        process.send_signal(number)
        time.sleep(0.0005)
    raise AssertionError


def launch_ranks(folder: Path) -> subprocess.Popen[bytes]:
    command = torchrun(RANKS, str(write_rank(folder)), str(folder))
    with (folder / "output").open("w") as output:
        return subprocess.Popen(command, stdout=output, stderr=output, cwd=folder, env=environment())


@pytest.mark.parametrize("numbers", [(signal.SIGTERM,), REQUESTS], ids=["SIGTERM", "all"])
def test_ranks_save_however_often_torchrun_is_asked_to_end(
    tmp_path: Path, numbers: tuple[signal.Signals, ...]
) -> None:
    with ended_at_last(launch_ranks(tmp_path)) as process:
        ranks = ready(tmp_path)
        assert flood(process, numbers) == 0
    output = (tmp_path / "output").read_text()
    assert "Traceback" not in output
    assert sorted(one.read_text() for one in tmp_path.glob("saved *")) == ["1"] * RANKS
    assert not [rank for rank in ranks if alive(rank)]


@pytest.mark.parametrize("number", REQUESTS)
def test_one_request_of_each_kind_is_passed_on(tmp_path: Path, number: signal.Signals) -> None:
    with ended_at_last(launch_ranks(tmp_path)) as process:
        ready(tmp_path)
        process.send_signal(number)
        assert process.wait(PATIENCE) == 0
    assert len([*tmp_path.glob("saved *")]) == RANKS


@pytest.mark.parametrize("delay", [0.2, 1.0, 2.0])
def test_torchrun_ends_at_once_if_there_is_nothing_to_save(tmp_path: Path, delay: float) -> None:
    """Its start takes a few seconds of imports, in which a signal must not raise an exception."""
    with ended_at_last(launch_ranks(tmp_path)) as process:
        wait_for(lambda: "megatron.flagscale.torchrun" in " ".join(psutil.Process(process.pid).cmdline()))
        time.sleep(delay)  # any moment will do
        code = flood(process, (signal.SIGTERM,))
    assert code in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    assert "Traceback" not in (tmp_path / "output").read_text()
    pids = [int(one.read_text() or 0) for one in tmp_path.glob("ready *")]
    wait_for(lambda: not [pid for pid in pids if psutil.pid_exists(pid)])


def test_a_rank_that_dies_of_the_request_is_no_failure(tmp_path: Path) -> None:
    with ended_at_last(launch_ranks(tmp_path)) as process:
        first, second = ready(tmp_path)
        second.suspend()
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: not alive(first))
        second.kill()
        assert process.wait(PATIENCE) == 128 + signal.SIGHUP
    assert "failed" not in (tmp_path / "output").read_text()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[FakeJob]:
    """A job under a supervisor, whose agent is torchrun."""
    argv = tuple(torchrun(RANKS, str(write_rank(tmp_path)), str(tmp_path)))
    made = fake_job(tmp_path, argv=argv, stop_grace=60.0, env={"PYTHONPATH": environment()["PYTHONPATH"]})
    yield made
    made.clean_up()


@pytest.mark.parametrize("order", [sorted, lambda pids: sorted(pids, reverse=True)], ids=["down", "up"])
def test_a_job_saves_if_all_its_processes_are_signalled_twice(
    job: FakeJob, tmp_path: Path, order: Callable[[set[int]], list[int]]
) -> None:
    job.start()
    ready(tmp_path)
    tree = of_run(job.plan.run_id)
    assert len(tree) >= 3 + RANKS
    for pause in (0.3, 0.0):
        for pid in order({process.pid for process in tree}):
            os.kill(pid, signal.SIGTERM)
        time.sleep(pause)
    wait_for(lambda: job.state().phase == "stopped" and job.is_gone())
    assert (job.state().exit_code, job.state().failure) == (0, None)
    assert len([*tmp_path.glob("saved *")]) == RANKS
    assert "Traceback" not in job.log()
    wait_for(lambda: not any(alive(process) for process in tree))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_a_job_saves_if_all_its_processes_get_another_request(
    job: FakeJob, tmp_path: Path, number: signal.Signals
) -> None:
    """The supervisor itself ignores these signals: it reports that its agent has ended."""
    job.start()
    ready(tmp_path)
    for process in of_run(job.plan.run_id):
        process.send_signal(number)
    wait_for(lambda: job.state().phase == "finished" and job.is_gone())
    assert len([*tmp_path.glob("saved *")]) == RANKS
    assert "Traceback" not in job.log()


def test_a_training_saves_if_all_its_processes_are_signalled_again_and_again(tmp_path: Path) -> None:
    """Saving starts a process, which must not end before its rank, not even in its first moments."""
    saved, metrics = tmp_path / "checkpoints", tmp_path / "metrics.jsonl"
    argv = [*MODEL, *MOCK_DATA, "--exit-signal-handler", "--metrics-file", str(metrics)]
    argv += ["--train-iters", "100000", "--save", str(saved), "--save-interval", "100000"]
    command = torchrun(RANKS, "-m", "megatron.flagscale.train_gpt", *argv)
    with (tmp_path / "output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, cwd=tmp_path, env=environment())
    with ended_at_last(process):
        wait_for(lambda: len(read_metrics(metrics)) >= 2)
        agent = psutil.Process(process.pid)
        while process.poll() is None:
            for one in (agent, *agent.children(recursive=True)):
                with suppress(psutil.NoSuchProcess):
                    one.terminate()
            time.sleep(0.02)
        assert process.returncode == 0, (tmp_path / "output").read_text()[-4000:]
    assert len([*saved.glob("iter_*/manifest.json")]) == 1
    assert "Traceback" not in (tmp_path / "output").read_text()


PROGRAM = """
import os, signal, sys, time
from megatron.flagscale import program

def train(argv, **parts):
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    print("training", flush=True)
    sys.exit()

program.train = train
if __name__ == "__main__":
    import atexit
    atexit.register(lambda: (print("ending", flush=True), time.sleep(1)))
    sys.exit(program.run())
"""


def test_a_late_sigterm_does_not_change_how_a_rank_ended(tmp_path: Path) -> None:
    """Python's exit restores the default reactions to signals."""
    command = [sys.executable, str(write_rank(tmp_path, PROGRAM))]
    with subprocess.Popen(
        command, env=environment(LOCAL_RANK="0"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as rank:
        assert rank.stdout
        assert rank.stdout.readline() == b"training\n"
        assert flood(rank, REQUESTS) == 0
        assert rank.stderr
        assert rank.stderr.read() == b""
