"""`action=auto_tune` as a user runs it: real processes, that are killed, stopped and watched from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from flagscale.node import processes
from flagscale.run.rundir import RunDir
from flagscale.run.tuner_dir import TunerDir
from flagscale_testing.jobs import fake_trainer
from flagscale_testing.jobs.demo import TINY, random_tokens
from tests.e2e.conftest import Experiment, wait_until

pytestmark = pytest.mark.timeout(900)

SPACE = {
    "tensor_model_parallel_size": [1, 2],
    "pipeline_model_parallel_size": [1],
    "context_parallel_size": [1],
    "micro_batch_size": [2],
    "use_recompute": [False],
    "sequence_parallel": [False],
    "use_distributed_optimizer": [True],
}
SMALL = (
    *TINY,
    *random_tokens(512),
    "experiment.runner.nproc_per_node=2",
    "experiment.runner.platform=cpu",
    "train.system.pipeline_model_parallel_size=1",
    "train.model.global_batch_size=8",
    "train.model.micro_batch_size=2",
)


def space(**changes: list[object]) -> str:
    return f"+experiment.auto_tuner.space={json.dumps({**SPACE, **changes}).replace(chr(34), '')}"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Experiment]]:
    """A function that makes experiments; the end of the test ends the trials that still run."""
    made: list[Experiment] = []

    def make(*overrides: str, name: str = "run") -> Experiment:
        made.append(Experiment(tmp_path / name, (*SMALL, *overrides), tmp_path))
        return made[-1]

    yield make
    for experiment in made:
        for folder in (experiment.exp_dir, *TunerDir.of(experiment.exp_dir).path.glob("task_*")):
            if plan := RunDir(folder).read_plan():
                processes.end(lambda run_id=plan.run_id: processes.of_run(run_id), grace=0)


@pytest.fixture
def fake(make: Callable[..., Experiment]) -> Callable[..., Experiment]:
    """The same with a program that trains nothing and ends as its layout says."""

    def fake(ends: dict[str, str], *overrides: str) -> Experiment:
        return make(
            f"experiment.task.entrypoint='{fake_trainer.__file__}'",
            f"+experiment.envs.FAKE_ENDS='{json.dumps(ends)}'",
            *overrides,
        )

    return fake


def of_trial(files: TunerDir, number: int) -> set[psutil.Process]:
    plan = RunDir(files.trial(number).path).read_plan()
    return processes.of_run(plan.run_id) if plan else set()


@pytest.mark.slow
def test_a_killed_tuner_is_continued_and_another_command_stops_it(
    fake: Callable[..., Experiment], decoy: psutil.Process
) -> None:
    job = fake({"tp1": "hang"}, space(), "+experiment.auto_tuner.control={run_best: false}")
    files = TunerDir.of(job.exp_dir)
    tuner = subprocess.Popen(job.words("auto_tune"), cwd=job.cwd, stdout=subprocess.DEVNULL)
    try:
        wait_until(lambda: len(of_trial(files, 1)) >= 4, 120)  # supervisor, torchrun, and two ranks
        shown = job("query")
        assert shown.code == 0
        assert "tuning: tried 0 of 2 candidates in 0 trials" in shown.out
        assert "trial 1" in shown.out
    finally:
        os.kill(tuner.pid, signal.SIGKILL)
        tuner.wait()
    left = of_trial(files, 1)
    assert left, "the trial goes on without its tuner"

    words = job.words("auto_tune", """experiment.envs.FAKE_ENDS='{"tp2": "hang"}'""")
    tuner = subprocess.Popen(words, cwd=job.cwd, stdout=subprocess.PIPE, text=True)
    try:
        wait_until(lambda: len(of_trial(files, 3)) >= 4, 120)
        stopped = job("stop")
        printed, _ = tuner.communicate(timeout=60)
    finally:
        tuner.kill()
    assert "trial 1 was interrupted; it is ended and will be repeated" in printed
    assert "best so far" in printed
    assert not any(process.is_running() for process in left)
    assert stopped.code == 0, stopped.err
    assert "the tuner has ended, and its trial with it" in stopped.out
    assert tuner.returncode == 1
    assert of_trial(files, 3) == set()
    assert [(one["number"], one["state"]) for one in files.entries()] == [(2, "measured")]
    assert decoy.is_running()


@pytest.mark.slow
def test_the_memory_that_a_trial_lacked_and_the_configuration_of_the_winner(
    fake: Callable[..., Experiment],
) -> None:
    job = fake({"tp2": "oom"}, space(), "+experiment.auto_tuner.control={run_best: false}")
    files = TunerDir.of(job.exp_dir)
    done = job("auto_tune")
    assert done.code == 0, done.out + done.err
    assert [one["state"] for one in files.entries()] == ["measured", "out of memory"]
    assert "CUDA out of memory" in done.out
    words = [*job.words("dryrun")[:2], "--config-path", str(files.path), "--config-name", "best"]
    best = subprocess.run([*words, "action=dryrun"], cwd=job.cwd, capture_output=True, text=True, check=False)
    assert best.returncode == 0, best.stderr
    assert "--tensor-model-parallel-size 1" in best.stdout
    assert f"--metrics-file {job.exp_dir}/metrics.jsonl" in best.stdout


def test_two_trials_of_the_real_trainer(make: Callable[..., Experiment]) -> None:
    control = "+experiment.auto_tuner.control={max_trials: 2, train_iters: 3, run_best: false}"
    grid = "+experiment.auto_tuner.algo.name=grid"
    job = make(space(tensor_model_parallel_size=[1], pipeline_model_parallel_size=[1, 2]), control, grid)
    done = job("auto_tune")
    assert done.code == 0, done.out + done.err
    entries = TunerDir.of(job.exp_dir).entries()
    assert [one["state"] for one in entries] == ["measured", "measured"]
    assert all(one["mem_bytes"] > 0 and len(one["iterations"]) == 3 for one in entries)


@pytest.mark.slow
def test_the_real_trainer_is_tuned_and_the_winner_trained(make: Callable[..., Experiment]) -> None:
    job = make(
        "train.model.eval_iters=1",
        space(pipeline_model_parallel_size=[1, 2]),
        "+experiment.auto_tuner.control={max_trials: 3, train_iters: 4}",
        "train.model.train_iters=3",
    )
    done = job("auto_tune")
    assert done.code == 0, done.out + done.err
    entries = TunerDir.of(job.exp_dir).entries()
    assert [one["state"] for one in entries] == ["measured"] * len(entries)
    assert all(one["mem_bytes"] > 0 for one in entries)
    assert not list(TunerDir.of(job.exp_dir).path.glob("task_*/checkpoints/*"))
    job.wait_for_iteration(3)
