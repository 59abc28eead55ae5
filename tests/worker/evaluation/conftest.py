"""What the tests of the harness share: a tiny model, tasks, and a run on them.

The harness takes seconds to import, so these tests are slow; `pip install 'flagscale[evaluate]'`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MISSING = "lm_eval is not installed (pip install 'flagscale[evaluate]')"


@pytest.fixture(scope="module", autouse=True)
def harness(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the caches of the harness out of the user's, and the network out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
        patch.setenv("TOKENIZERS_PARALLELISM", "false")
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        pytest.importorskip("lm_eval", reason=MISSING)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flagscale_testing.evaluated import write_model

    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flagscale_testing.evaluated import write_tasks

    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture
def evaluate(tmp_path: Path, tasks: Path) -> Callable[..., int]:
    """Return a function that runs the program with further words, and returns its exit code."""

    def run(*words: str, task: tuple[str, ...] = ("local_choice",)) -> int:
        from megatron.flagscale.evaluation.evaluate import main

        return main(
            [*("--tasks", *task), "--include_path", str(tasks), *words, "--output", str(tmp_path / "out")]
        )

    return run


def scores_in(folder: Path) -> dict[tuple[str, str], float]:
    """Return the scores of a run by model and metric."""
    return {
        (one["model"], one["metric"]): one["value"]
        for one in json.loads((folder / "results.json").read_text())
    }


def records_of(folder: Path, task: str) -> list[dict[str, Any]]:
    """Return what a run kept of the examples of the model `tiny`, in the order of the examples."""
    lines = (folder / f"models/tiny/{task}.jsonl").read_text().splitlines()
    return sorted(map(json.loads, lines), key=lambda record: record["doc_id"])


FP32 = ("--model_args", '{"dtype": "float32"}')
