"""Real jobs with the README's command, `python run.py ... action=A`, on a smaller version of the demo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from flagscale.node import processes
from flagscale.run.rundir import RunDir
from flagscale_testing.jobs.demo import TINY
from flagscale_testing.ranks.training import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "experiment.runner.nproc_per_node=2",
    *TINY,
    "train.model.global_batch_size=4",
    "train.model.micro_batch_size=2",
    "train.model.eval_iters=1",
]


@dataclass(frozen=True)
class Command:
    """A finished command."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Experiment:
    """The demo with its own run directory; `experiment(action, *overrides)` performs an action on it."""

    exp_dir: Path
    overrides: tuple[str, ...]
    cwd: Path

    def words(self, action: str, *more: str) -> list[str]:
        folder = str(ROOT / "examples/aquila/conf")
        exp_dir = str(self.exp_dir).replace("\\", "\\\\").replace("'", "\\'")
        return [
            sys.executable, str(ROOT / "run.py"), "--config-path", folder, "--config-name", "config",
            f"experiment.exp_dir='{exp_dir}'", *self.overrides, f"action={action}", *more,
        ]  # fmt: skip

    def __call__(self, action: str, *more: str, timeout: float = PATIENCE) -> Command:
        done = subprocess.run(
            self.words(action, *more), cwd=self.cwd, capture_output=True, text=True, timeout=timeout
        )
        return Command(done.returncode, done.stdout, done.stderr)

    def status(self) -> dict:
        return json.loads(self("query", "output=json").out)

    def metrics(self) -> list[dict]:
        path = RunDir(self.exp_dir).metrics
        lines = path.read_text().splitlines() if path.exists() else []
        return [record for record in map(json.loads, lines) if "iteration_ms" in record]

    def wait_for_iteration(self, iteration: int, seconds: float = PATIENCE) -> None:
        wait_until(lambda: bool(self.metrics()) and self.metrics()[-1]["iteration"] >= iteration, seconds)

    def processes(self) -> set[psutil.Process]:
        """Return all living processes of the newest run."""
        plan = RunDir(self.exp_dir).read_plan()
        return processes.of_run(plan.run_id) if plan else set()


def rank_process(processes: Iterable[psutil.Process], rank: int) -> psutil.Process:
    """Return the rank itself: its data loaders have the same environment, but are younger."""
    named = []
    for process in processes:
        with suppress(psutil.Error):  # a process that is just ending
            if process.environ().get("RANK") == str(rank):
                named.append(process)
    return min(named, key=lambda process: process.create_time())


def wait_until(holds: Callable[[], bool], seconds: float) -> float:
    """Wait until `holds`; return how long that took; fail the test after `seconds`."""
    begun = time.monotonic()
    while not holds():
        assert time.monotonic() - begun < seconds, f"not within {seconds} s"
        time.sleep(0.1)
    return time.monotonic() - begun


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small corpus of text, tokenized by the tools, as overrides of the demo's data keys."""
    folder = tmp_path_factory.mktemp("corpus")
    text = folder / "text.jsonl"
    words = [f"the {n} th sentence of a small corpus speaks of {n * n} things" for n in range(3000)]
    text.write_text(
        "".join(json.dumps({"text": " ".join(words[i : i + 20])}) + "\n" for i in range(0, 3000, 10))
    )
    subprocess.run(
        [
            sys.executable,
            str(ROOT / "tools/datasets/demo.py"),
            "--source",
            str(text),
            "--output",
            str(folder / "data"),
        ],
        check=True,
        capture_output=True,
    )
    return [
        f"train.data.train_data_path=[{folder}/data/train_text_document]",
        f"train.data.valid_data_path=[{folder}/data/valid_text_document]",
        f"train.data.tokenizer.tokenizer_model={folder}/data/tokenizer",
    ]


@pytest.fixture
def make_experiment(corpus: list[str], tmp_path: Path) -> Iterator[Callable[..., Experiment]]:
    """A function that makes experiments below `tmp_path`; the end of the test ends what still runs."""
    made: list[Experiment] = []

    def make(*overrides: str, name: str = "run") -> Experiment:
        made.append(Experiment(tmp_path / name, (*SMALL, *corpus, *overrides), tmp_path))
        return made[-1]

    yield make
    for experiment in made:
        plan = RunDir(experiment.exp_dir).read_plan()
        if plan:
            group = {node.host for node in plan.nodes}
            assert group
            processes.end(lambda run_id=plan.run_id: processes.of_run(run_id), grace=0)


@pytest.fixture
def decoy() -> Iterator[psutil.Process]:
    """A process of the same user that looks like torchrun but is not part of the run."""
    script = "import time; time.sleep(600)"
    environment = {name: value for name, value in os.environ.items() if name != processes.RUN_ID}
    sleeping = subprocess.Popen(
        [sys.executable, "-c", script, "torchrun", "megatron.flagscale.train_gpt"], env=environment
    )
    yield psutil.Process(sleeping.pid)
    sleeping.kill()
    sleeping.wait()
