"""How a run ends after a signal, an exception or a user's mistake."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from flagscale.node.processes import alive
from flagscale.run.failure import Failure, signal_name
from flagscale_testing.ranks.training import (
    MOCK_DATA,
    MODEL,
    PATIENCE,
    ROOT,
    ended_at_last,
    environment,
    read_metrics,
    saving,
    torchrun,
    train,
    wait_for,
)
from megatron.flagscale.torchrun import first_failure

WORKER = """
import os, signal, sys, time
from torch.distributed.elastic.multiprocessing.errors import record
from megatron.flagscale.supervision import die_with_parent
die_with_parent()
rank = int(os.environ["RANK"])
@record
def main():
    {body}
main()
"""


def run_worker(
    folder: Path, body: str, ranks: int = 2, timeout: float = PATIENCE
) -> tuple[int, dict[str, object] | None, str]:
    (folder / "worker.py").write_text(WORKER.format(body=body))
    failure = folder / "failure.json"
    done = subprocess.run(
        torchrun(ranks, "--monitor-interval", "0.1", str(folder / "worker.py")),
        env=environment(FLAGSCALE_FAILURE_FILE=str(failure)),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode, json.loads(failure.read_text()) if failure.exists() else None, done.stderr


def test_an_exception_is_reported_with_its_rank_and_traceback(tmp_path: Path) -> None:
    code, failure, output = run_worker(tmp_path, "1 / 0 if rank == 1 else time.sleep(60)")
    assert code == 1
    assert failure is not None
    assert (failure["rank"], failure["local_rank"], failure["exitcode"], failure["signal"]) == (1, 1, 1, None)
    assert failure["message"] == "ZeroDivisionError: division by zero"
    assert "1 / 0 if rank == 1" in str(failure["traceback"])
    assert "rank 1 (pid " in output


@pytest.mark.slow  # tests/e2e kills a rank of a whole job
def test_a_killed_rank_is_reported_with_its_signal(tmp_path: Path) -> None:
    code, failure, _ = run_worker(
        tmp_path, "os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(60)"
    )
    assert code == 1
    assert failure is not None
    assert (failure["rank"], failure["signal"], failure["exitcode"]) == (1, "SIGKILL", -9)


@pytest.mark.slow
def test_a_rank_killed_by_a_signal_without_a_name_is_reported(tmp_path: Path) -> None:
    code, failure, output = run_worker(
        tmp_path, "os.kill(os.getpid(), signal.SIGRTMIN + 1) if rank == 1 else time.sleep(60)"
    )
    number = signal.SIGRTMIN + 1
    assert code == 1
    assert failure is not None, output
    assert (failure["rank"], failure["signal"], failure["exitcode"]) == (1, f"signal {number}", -number)


@pytest.mark.slow
def test_a_rank_that_ignores_sigterm_is_not_reported_as_the_cause(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    ignores = f"(signal.signal(15, signal.SIG_IGN), open({str(ready)!r}, 'w'), time.sleep(60))"
    waits = f"all(iter(lambda: time.sleep(0.05) or not os.path.exists({str(ready)!r}), False))"
    code, failure, _ = run_worker(tmp_path, f"sys.exit(3) if rank == 1 and {waits} else {ignores}")
    ended = time.time()
    assert code == 1
    assert failure is not None
    assert (failure["rank"], failure["exitcode"]) == (1, 3)
    # torchrun's default is to wait 30 seconds for the survivor; the limit leaves time for imports.
    assert ended - float(str(failure["time"])) < 25


def failed(rank: int, exitcode: int = 1, message: str = "boom", at: float = 0.0) -> Failure:
    return Failure(message, rank, rank, 100 + rank, exitcode, signal_name(exitcode), time=at)


@pytest.mark.parametrize(
    ("failures", "cause"),
    [
        ([failed(0, at=2), failed(1, at=1)], 1),
        (
            [failed(0, at=1, message="RuntimeError: Connection closed by peer [127.0.0.1]"), failed(1, at=2)],
            1,
        ),
        ([failed(0, at=1), failed(1, -9, at=2)], 1),
        ([failed(0, -15, at=1), failed(1, at=2)], 1),
        ([failed(0, -6, at=1), failed(1, at=2)], 1),
        ([failed(0, -6, at=2), failed(1, message="Connection reset by peer", at=1)], 0),
        ([failed(0, -11, at=2), failed(1, -9, at=1)], 1),
    ],
)
def test_the_cause_is_reported_before_its_victims(failures: list[Failure], cause: int) -> None:
    assert first_failure(failures).rank == cause
    assert first_failure(failures[::-1]).rank == cause


def start_training(folder: Path, *argv: str) -> subprocess.Popen[bytes]:
    command = torchrun(2, "-m", "megatron.flagscale.train_gpt", *MODEL, *MOCK_DATA)
    more = ["--metrics-file", str(folder / "metrics.jsonl"), *argv]
    with (folder / "output").open("w") as output:
        return subprocess.Popen(
            [*command, *more], stdout=output, stderr=output, cwd=folder, env=environment()
        )


@pytest.mark.slow  # tests/e2e stops a whole job
def test_sigterm_saves_a_checkpoint_and_exits_with_0(tmp_path: Path) -> None:
    saved = tmp_path / "checkpoints"
    long_run = [
        "--train-iters",
        "100000",
        "--save",
        str(saved),
        "--load",
        str(saved),
        "--save-interval",
        "100000",
    ]
    with ended_at_last(start_training(tmp_path, *long_run, "--exit-signal-handler")) as process:
        wait_for(lambda: len(read_metrics(tmp_path / "metrics.jsonl")) >= 2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0, (tmp_path / "output").read_text()[-4000:]
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]["iteration"]
    assert (saved / "latest_checkpointed_iteration.txt").read_text() == str(last)
    assert (saved / f"iter_{last:07d}" / "manifest.json").is_file()


def test_no_rank_outlives_a_killed_torchrun(tmp_path: Path) -> None:
    saved = tmp_path / "checkpoints"
    asked = ("--train-iters", "100000", "--save", str(saved), "--save-interval", "2")
    with ended_at_last(start_training(tmp_path, *asked)) as process:
        wait_for((saved / "iter_0000002" / "manifest.json").exists)
        ranks = psutil.Process(process.pid).children(recursive=True)
        assert len(ranks) > 2  # saving started helpers
    wait_for(lambda: not any(map(alive, ranks)))


def test_a_users_mistake_is_reported_in_one_line(tmp_path: Path) -> None:
    mistaken = [
        "--tokenizer-type",
        "HuggingFaceTokenizer",
        "--tokenizer-model",
        str(tmp_path / "nowhere"),
        "--mock-data",
    ]
    ended = train(tmp_path, 2, *mistaken, *saving(tmp_path / "checkpoints"))
    assert ended.code == 1
    assert ended.failure is not None
    assert ended.failure["exitcode"] == 2
    assert ended.failure["message"] == f"--tokenizer-model: {tmp_path / 'nowhere'}: no such tokenizer"
    assert ended.output.count("error: ") == 1
    assert "Traceback" not in ended.output


@pytest.mark.slow
def test_features_not_supported_on_cpu_are_refused_at_once(tmp_path: Path) -> None:
    asked = [
        "--distributed-backend",
        "nccl",
        "--transformer-impl",
        "transformer_engine",
        "--train-iters",
        "1",
        "--wandb-project=p",
    ]
    (tmp_path / "wandb").mkdir()  # a run's folder; Python would import it
    ended = train(tmp_path, 1, *MOCK_DATA, *asked)
    assert ended.failure is not None
    assert "the package `wandb` is not installed in" in ended.output
    assert "run `pip install 'flagscale[wandb]'` there, or remove wandb_project" in ended.output
    assert "`distributed_backend: nccl` is not supported on CPU" in ended.output
    assert "`transformer_impl: transformer_engine` is not supported on CPU" in ended.output


@pytest.mark.slow
def test_a_full_disk_is_reported_in_one_line(tmp_path: Path) -> None:
    """A file size limit stands in for a full disk."""
    saved = tmp_path / "checkpoints"
    saved.mkdir()
    program = (
        "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000));"
        "sys.argv = ['train_gpt', *sys.argv[1:]];"
        "runpy.run_module('megatron.flagscale.train_gpt', run_name='__main__')"
    )
    (tmp_path / "limited.py").write_text(
        "from megatron.flagscale.supervision import die_with_parent\ndie_with_parent()\n"
        f"if __name__ == '__main__':\n    {program}\n"
    )
    failure = tmp_path / "failure.json"
    done = subprocess.run(
        torchrun(2, str(tmp_path / "limited.py"), *MODEL, *MOCK_DATA, *saving(saved)),
        env=environment(FLAGSCALE_FAILURE_FILE=str(failure)),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1
    reported = json.loads(failure.read_text())
    assert reported["exitcode"] == 2
    assert "the checkpoint of iteration 3 could not be written" in reported["message"]
    assert "File too large" in reported["message"]
    assert not list(saved.glob("iter_*"))
    assert os.listdir(saved) == []
