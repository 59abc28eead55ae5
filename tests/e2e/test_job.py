"""The life of a job, with the README's command: run, query, logs, stop, resume, failures."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from flagscale.run.rundir import RunDir
from flagscale_testing.jobs.demo import LONG
from tests.e2e.conftest import Experiment, rank_process, wait_until

pytestmark = pytest.mark.timeout(900)  # more than the limit of each command and each wait
Make = Callable[..., Experiment]
CLEAN_WITHIN = 30.0
"""Seconds; torchrun gives the survivors three seconds, and each command has to import everything."""


@pytest.mark.slow  # the next test continues a run too, and tests/worker starts a finished one
def test_a_second_foreground_run_continues_from_the_checkpoint_of_the_first(make_experiment: Make) -> None:
    job = make_experiment("train.model.train_iters=8", "train.system.checkpoint.save_interval=4")
    done = job("test")
    assert done.code == 0, done.out + done.err
    first = job.metrics()
    assert [record["iteration"] for record in first] == list(range(1, 9))
    assert first[-1]["lm_loss"] < first[0]["lm_loss"]
    assert "iteration 8/8" in done.out
    assert job.status()["state"] == "finished"

    again = job("test", "train.model.train_iters=12")
    assert again.code == 0, again.out + again.err
    continued = job.metrics()
    assert [record["iteration"] for record in continued] == list(range(1, 13)), "continued, not started over"
    assert continued[8]["lm_loss"] < first[0]["lm_loss"]

    finished = job("test", "train.model.train_iters=12")
    assert finished.code == 0, finished.out + finished.err
    assert len(job.metrics()) == 12


def test_a_background_job_can_be_watched_stopped_and_resumed_but_not_started_twice(
    make_experiment: Make, decoy: psutil.Process
) -> None:
    job = make_experiment(*LONG)
    assert job("query").code == 3
    assert job("logs").code == 3
    assert job("stop").code == 0
    started = job("run")
    assert started.code == 0, started.err
    assert "action=query" in started.out

    refused = job("run")
    assert refused.code == 1
    assert "is still running" in refused.err
    assert "Traceback" not in refused.err

    job.wait_for_iteration(3)
    watched = job("query")
    assert watched.code == 0
    assert "running" in watched.out
    assert "tokens/s" in watched.out
    status = job.status()
    assert status["state"] == "running"
    assert status["metrics"]["lm_loss"] > 0
    assert status["hosts"][0]["processes"] >= 3
    wait_until(
        lambda: "iteration 3/" in job("logs").out, 120
    )  # the log is written independently of the metrics

    stopped = job("stop")
    assert stopped.code == 0, stopped.err
    assert job.processes() == set()
    assert decoy.is_running()
    assert job.status()["state"] == "stopped"
    assert job("stop").code == 0
    # With exit_signal_handler, the stop itself saves a checkpoint.
    tracker = RunDir(job.exp_dir).checkpoints / "latest_checkpointed_iteration.txt"
    saved = int(tracker.read_text())
    assert saved == job.metrics()[-1]["iteration"]

    resumed = job("test", f"train.model.train_iters={saved + 2}")
    assert resumed.code == 0, resumed.out + resumed.err
    assert [record["iteration"] for record in job.metrics()] == list(range(1, saved + 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "victim", ["rank", *(pytest.param(name, marks=pytest.mark.slow) for name in ("torchrun", "supervisor"))]
)
def test_killing_any_process_ends_the_run_and_query_reports_it(
    make_experiment: Make, decoy: psutil.Process, victim: str
) -> None:
    job = make_experiment(*LONG)
    assert job("run").code == 0
    job.wait_for_iteration(2)
    running = job.processes()
    rank = rank_process(job.processes(), 1)
    torchrun = rank.parent()
    assert torchrun is not None
    supervisor = torchrun.parent()
    assert supervisor is not None
    chosen = {"rank": rank, "torchrun": torchrun, "supervisor": supervisor}[victim]
    chosen.kill()
    wait_until(lambda: not any(alive(process) for process in {*running, supervisor}), CLEAN_WITHIN)
    wait_until(lambda: job.status()["state"] == "failed", CLEAN_WITHIN)
    reported = job("query")
    assert reported.code == 1
    expected = {"rank": "rank 1", "torchrun": "agent was killed by SIGKILL", "supervisor": "supervisor"}
    assert expected[victim] in reported.out
    assert victim != "rank" or "SIGKILL" in reported.out
    assert decoy.is_running()
    assert job("run").code == 0, "the run directory is free again"
    assert job("stop").code == 0


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_the_traceback_of_the_first_failing_rank_is_shown(make_experiment: Make, tmp_path: Path) -> None:
    program = tmp_path / "fails on rank 1.py"
    program.write_text(
        "import os, time\n"
        "from torch.distributed.elastic.multiprocessing.errors import record\n"
        "@record\n"
        "def main():\n"
        "    if os.environ['RANK'] == '1':\n"
        "        raise ValueError('a layer is missing')\n"
        "    time.sleep(60)\n"
        "main()\n"
    )
    job = make_experiment(f"experiment.task.entrypoint='{program}'")
    done = job("test")
    assert done.code == 1
    assert "rank 1" in done.out
    assert "ValueError: a layer is missing" in done.out
    assert job.status()["failure"]["rank"] == 1


def test_ctrl_c_stops_the_whole_job(make_experiment: Make) -> None:
    job = make_experiment(*LONG)
    # A shell that runs the tests in the background makes them ignore Ctrl-C; a user's terminal does not.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    foreground = subprocess.Popen(
        job.words("test"), cwd=job.cwd, stdout=subprocess.PIPE, text=True, preexec_fn=heed
    )
    job.wait_for_iteration(1)
    foreground.send_signal(signal.SIGINT)
    end = time.monotonic() + 120
    while foreground.poll() is None:
        # An impatient user, or a queue that ends the whole job: the stop must not be interrupted.
        assert time.monotonic() < end
        time.sleep(0.05)
        foreground.send_signal(signal.SIGTERM)
        foreground.send_signal(signal.SIGINT)
    assert foreground.returncode == 130
    assert job.processes() == set()
    assert job.status()["state"] == "stopped"


def test_values_travel_verbatim(make_experiment: Make, tmp_path: Path) -> None:
    hostile = """a b "c" 'd' $HOME $(touch x) `touch y` ; touch z \\ é 試 {"json": [1]}"""
    program = tmp_path / "dump.py"
    dump = tmp_path / "dump.json"
    program.write_text(
        "import json, os, sys, pathlib\n"
        "if os.environ['RANK'] == '0':\n"
        f"    pathlib.Path({str(dump)!r}).write_text(json.dumps([sys.argv[1:], dict(os.environ)]))\n"
    )
    config = tmp_path / "conf"
    config.mkdir()
    quoted = hostile.replace("'", "''")
    (config / "config.yaml").write_text(
        "experiment:\n"
        f"  exp_name: '{quoted}'\n"
        f"  exp_dir: '{tmp_path}/out {quoted.replace('/', '')}'\n"
        f"  task: {{type: train, backend: megatron, entrypoint: {program}}}\n"
        "  runner: {nproc_per_node: 1}\n"
        f"  envs: {{HOSTILE: '{quoted}', LINES: \"one\\ntwo\"}}\n"
        "action: test\n"
        "train:\n"
        "  num_layers: 2\n  hidden_size: 32\n  num_attention_heads: 4\n  seq_length: 64\n"
        "  max_position_embeddings: 64\n  micro_batch_size: 1\n  train_iters: 1\n"
        "  save_interval: 1\n  lr: 1.0e-3\n"
        "  mock_data: true\n  tokenizer_type: NullTokenizer\n  vocab_size: 100\n"
        f"  wandb_exp_name: '{quoted}'\n"
    )
    command = [*make_experiment().words("test")[:2], "--config-path", str(config), "--config-name", "config"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    argv, environment = json.loads(dump.read_text())
    assert argv[argv.index("--wandb-exp-name") + 1] == hostile
    assert environment["HOSTILE"] == hostile
    assert environment["LINES"] == "one\ntwo"
    assert not [name for name in ("x", "y", "z") if (tmp_path / name).exists()]


def test_a_port_in_use_is_reported_before_anything_starts(make_experiment: Make) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        job = make_experiment(f"+experiment.runner.master_port={port}")
        begun = time.monotonic()
        refused = job("run")
    assert refused.code == 1
    assert str(port) in refused.err
    assert "Traceback" not in refused.err
    assert time.monotonic() - begun < 60  # it does not wait for a timeout
    assert job("query").code == 3
