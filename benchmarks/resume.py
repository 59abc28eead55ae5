"""Measure a resumed training up to its first iteration, with this tree and with another one, alternately.

The checkpoint is made once, by the other tree. Reported for each way to start: CPU seconds of all processes
and wall seconds from the start of the command to the end of the first iteration, the peak memory of a rank,
and with `--phases` the CPU seconds of each phase of rank 0, from runs of their own. Both trees must report
the same loss.

    python -m benchmarks.resume --base PATH [--rounds 3] [--ways torchrun run.py] [--ranks 1 2]
                                [--format torch_dist] [--phases] [--layers 8] [--hidden-size 1024]
                                [-- ARGUMENT ...]

PATH is a worktree of another commit. The arguments after `--` are added to those of Megatron.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import os
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import psutil

from flagscale.run.rundir import RunDir
from flagscale_testing.ranks.training import MOCK_DATA, ROOT, environment, free_port, wait_for

_SAVED = 2
"""The iteration of the checkpoint; the one after it is measured."""
_PR_SET_CHILD_SUBREAPER = 36
_PHASES = {
    "model": "setup_model_and_optimizer",
    "checkpoint": "load_checkpoint",
    "data": "build_train_valid_test_data_iterators",
    "step": "train_step",
}
"""Phases of the trainer, by the function of `megatron.training.training` that is one."""


@dataclass(frozen=True)
class Resumed:
    """CPU and wall seconds to the end of the first iteration, peak memory of the last rank in MB, loss."""

    cpu: float
    wall: float
    megabytes: float
    loss: float


@dataclass(frozen=True)
class Job:
    """A training in a folder that holds its checkpoint; `more` are arguments of Megatron."""

    folder: Path
    ranks: int
    layers: int
    hidden_size: int
    more: tuple[str, ...]

    def argv(self) -> list[str]:
        return [
            *shlex.split(f"""
                --num-layers {self.layers} --hidden-size {self.hidden_size} --num-attention-heads 8
                --seq-length 128 --max-position-embeddings 128 --micro-batch-size 1
                --global-batch-size {self.ranks} --lr 1e-4 --train-iters 24 --save-interval {_SAVED}
                --eval-iters 0 --log-interval 1
            """),
            *MOCK_DATA,
            *self.more,
        ]

    def resume_argv(self) -> list[str]:
        return [*self.argv(), "--load", str(self.folder / "saved"), "--exit-interval", str(_SAVED + 1)]


def main() -> None:
    """Make the checkpoint, resume from it alternately, and print the medians and ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", type=Path, required=True, help="a worktree of another commit")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=["torchrun", "run.py"], default=["torchrun", "run.py"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--format", choices=["torch_dist", "torch"], default="torch_dist")
    parser.add_argument("--phases", action="store_true", help="also report the phases of rank 0")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("arguments", nargs="*", help="more arguments of Megatron, after --")
    asked = parser.parse_args()
    trees = {"base": asked.base.resolve(), "new": ROOT}
    # Processes that detach themselves stay descendants of this one, which counts their CPU seconds.
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    print(f"medians of {asked.rounds} rounds [least to greatest], after one that warms the file cache")
    for ranks in asked.ranks:
        with tempfile.TemporaryDirectory() as folder:
            more = (*asked.arguments, "--ckpt-format", asked.format)
            job = Job(Path(folder), ranks, asked.layers, asked.hidden_size, more)
            _save(job, trees["base"])
            for way in asked.ways:
                _compare(job, way, trees, asked.rounds)
            if asked.phases:
                _print_phases(job, trees, asked.rounds)


def _save(job: Job, tree: Path) -> None:
    argv = [*job.argv(), "--save", str(job.folder / "saved"), "--exit-interval", str(_SAVED)]
    command = _torchrun(job.ranks, "-m", "megatron.flagscale.train_gpt", *argv)
    subprocess.run(command, cwd=tree, env=_environment(tree), check=True, capture_output=True)
    size = sum(file.stat().st_size for file in (job.folder / "saved").rglob("*") if file.is_file())
    print(f"\n{job.ranks} rank(s), a checkpoint of {size / 1e9:.2f} GB")


def _compare(job: Job, way: str, trees: dict[str, Path], rounds: int) -> None:
    start = {"torchrun": _with_torchrun, "run.py": _with_run_py}[way]
    runs: dict[str, list[Resumed]] = {side: [] for side in trees}
    for number in range(rounds + 1):
        sides = list(trees) if number % 2 else list(reversed(trees))
        for side in sides:
            with tempfile.TemporaryDirectory() as folder:
                command, metrics = start(job, trees[side], Path(folder))
                resumed = _resumed(command, metrics, trees[side])
            if number:
                runs[side].append(resumed)
    if len(losses := {one.loss for side in runs.values() for one in side}) > 1:
        raise SystemExit(f"the losses differ: {losses}")
    print(f"{way:24}{'CPU s':>24}{'wall s':>24}{'peak MB of a rank':>24}")
    for side, resumed_runs in runs.items():
        cells = [_cell(column) for column in list(zip(*map(astuple, resumed_runs), strict=True))[:3]]
        print(f"  {side:22}{cells[0]:>24}{cells[1]:>24}{cells[2]:>24}")
    pairs = list(zip(runs["new"], runs["base"], strict=True))
    ratios = [[one / other for one, other in zip(astuple(a), astuple(b), strict=True)][:3] for a, b in pairs]
    cells = [_cell(column) for column in zip(*ratios, strict=True)]
    print(f"  {'ratio':22}{cells[0]:>24}{cells[1]:>24}{cells[2]:>24}", flush=True)


def _cell(values: tuple[float, ...]) -> str:
    digits = 0 if max(values) > 100 else 2
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f} to {max(values):.{digits}f}]"


def _torchrun(ranks: int, *argv: str) -> list[str]:
    where = ["--nproc-per-node", str(ranks), "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    return [sys.executable, "-m", "megatron.flagscale.torchrun", *where, *argv]


def _environment(tree: Path) -> dict[str, str]:
    return environment(PYTHONPATH=f"{tree}:{tree / 'vllm'}")


def _with_torchrun(job: Job, tree: Path, folder: Path) -> tuple[list[str], Path]:
    metrics = folder / "metrics.jsonl"
    argv = [*job.resume_argv(), "--metrics-file", str(metrics)]
    return _torchrun(job.ranks, "-m", "megatron.flagscale.train_gpt", *argv), metrics


def _with_run_py(job: Job, tree: Path, folder: Path) -> tuple[list[str], Path]:
    runner = {"type": "ssh", "backend": "torchrun", "nnodes": 1, "platform": "cpu"}
    config = {
        "experiment": {
            "exp_name": "resume",
            "exp_dir": str(folder),
            "task": {"type": "train", "backend": "megatron", "entrypoint": "megatron.flagscale.train_gpt"},
            "runner": {**runner, "nproc_per_node": job.ranks},
        },
        "train": {**_as_keys(job.resume_argv()), "save": None},
        "action": "test",
    }
    (folder / "config.yaml").write_text(json.dumps(config))
    where = ["--config-path", str(folder), "--config-name", "config"]
    return [sys.executable, str(tree / "run.py"), *where], RunDir(folder).metrics


def _as_keys(argv: list[str]) -> dict[str, Any]:
    """Return arguments, each with at most one value, as the keys of a configuration."""
    keys: dict[str, Any] = {}
    name = ""
    for word in argv:
        if word.startswith("--"):
            name = word.removeprefix("--").replace("-", "_")
            keys[name] = True
        else:
            keys[name] = float(word) if "e-" in word else int(word) if word.isdigit() else word
    return keys


def _resumed(command: list[str], metrics: Path, tree: Path) -> Resumed:
    """Start a command and measure it until its metrics file has the first iteration; wait for its end."""
    before = _own_children()
    begun = time.time()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=tree, env=_environment(tree), stdout=output, stderr=subprocess.STDOUT
        )
        wait_for(lambda: process.poll() is not None or (metrics.exists() and metrics.stat().st_size))
        cpu = _cpu_of_descendants() + _own_children() - before
        if process.wait() or not metrics.exists():
            output.seek(0)
            raise SystemExit(f"{command} ended with {process.returncode}:\n{output.read()[-4000:]}")
    first = json.loads(metrics.read_text().splitlines()[0])
    _reap()
    return Resumed(cpu, first["time"] - begun, first["mem_bytes"] / 1e6, first["lm_loss"])


def _own_children() -> float:
    """Return the CPU seconds of this process's children that have ended, with all that they waited for."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _cpu_of_descendants() -> float:
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            total += sum(process.cpu_times()[:4])  # its own, and those of its children that have ended
        except psutil.NoSuchProcess:
            pass  # it ended meanwhile: its parent counts it, or was asked before it
    return total


def _reap() -> None:
    """Wait for the processes that this one inherited."""
    try:
        while True:
            os.wait()
    except ChildProcessError:
        pass


def _print_phases(job: Job, trees: dict[str, Path], rounds: int) -> None:
    """Print the median CPU seconds of each phase of rank 0, from runs of their own."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in trees}
    for _ in range(rounds):
        for side, tree in trees.items():
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "phases.json")
                command = _torchrun(job.ranks, str(Path(__file__)), "--worker", str(file), *job.resume_argv())
                subprocess.run(command, cwd=tree, env=_environment(tree), check=True, capture_output=True)
                found[side].append(json.loads(file.read_text()))
    print(f"{'phases, CPU s of rank 0':24}{'base':>8}{'new':>8}")
    for phase in found["base"][0]:
        medians = [statistics.median(one[phase] for one in found[side]) for side in ("base", "new")]
        print(f"  {phase:22}" + "".join(f"{seconds:8.2f}" for seconds in medians), flush=True)


def _worker(file: Path, argv: list[str]) -> None:
    """Train in this process, and write the CPU seconds of each phase when the first step is done."""
    from megatron.flagscale import bootstrap

    seconds: dict[str, float] = {}

    def timed(phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*positional: Any, **named: Any) -> Any:
            start = time.process_time()
            if not seconds:
                seconds["imports, arguments"] = start
            outcome = function(*positional, **named)
            seconds[phase] = time.process_time() - start
            return outcome

        return call

    prepare = bootstrap.prepare_engine

    def prepare_engine(*positional: Any, **named: Any) -> list[str]:
        whole = prepare(*positional, **named)
        from megatron.training import training

        for phase, name in _PHASES.items():
            setattr(training, name, timed(phase, getattr(training, name)))
        return whole

    bootstrap.prepare_engine = prepare_engine
    from megatron.flagscale.program import train

    try:
        train(argv)
    except SystemExit:
        pass  # the trainer ends the process after the iteration that was asked for
    if os.environ["RANK"] == "0":
        seconds["model"] -= seconds["checkpoint"]
        file.write_text(json.dumps({phase: seconds[phase] for phase in ("imports, arguments", *_PHASES)}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        _worker(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
