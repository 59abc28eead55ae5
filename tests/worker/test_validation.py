"""Several validation sets: each is evaluated as if alone, in every layout, and reported by its name."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from flagscale_testing.ranks.forked import Run, run_all
from flagscale_testing.ranks.training import MODEL, TP2_PP2, read_metrics
from megatron.flagscale.validation import batches

SETS = ("web", "code", "books")
SAMPLES = (21, 6, 13)
"""No batch size divides all of them."""
VALIDATING = ("--train-iters", "4", "--eval-interval", "2", "--eval-iters", "2", "--full-validation")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Return the arguments for the training data; the validation sets are in the folder of their prefix."""
    import numpy
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    folder = tmp_path_factory.mktemp("sets")
    for number, (name, samples) in enumerate(zip(("train", *SETS), (60, *SAMPLES), strict=True)):
        random = numpy.random.default_rng(number)
        builder = IndexedDatasetBuilder(str(folder / f"{name}.bin"), dtype=numpy.uint16)
        tokens = random.integers(0, 50 + 60 * number, samples * 64 + 1)
        builder.add_document(torch.tensor(tokens), [len(tokens)])
        builder.finalize(str(folder / f"{name}.idx"))
    return (
        *("--tokenizer-type", "NullTokenizer", "--vocab-size", "255"),
        *("--train-data-path", str(folder / "train"), "--data-cache-path", str(folder / "cache")),
    )


def prefixes(data: tuple[str, ...], *names: str) -> tuple[str, ...]:
    folder = Path(data[data.index("--train-data-path") + 1]).parent
    return ("--valid-data-path", *(str(folder / name) for name in names))


def validated(folder: Path) -> dict[tuple[str, int], float]:
    """Return the validation losses of a run by key and iteration."""
    found: dict[tuple[str, int], float] = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        keys = [key for key in line if key.startswith(("validation", "test"))]
        found |= {(key, line["iteration"]): line[key] for key in keys}
    return found


def trained(folder: Path, runs: list[Run]) -> dict[str, dict[tuple[str, int], float]]:
    curves = run_all(runs, folder)
    for name, curve in curves.items():
        assert not curve.error, f"{name}: {curve.error}"
    return {name: validated(folder / name) for name in curves}


@pytest.fixture(scope="module")
def alone(data: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], float]:
    """Return the losses of the sets, each evaluated in a run of its own, by a batch size that divides it."""
    one_by_one = ("--eval-micro-batch-size", "1", "--eval-global-batch-size", "1")
    runs = [Run(name, 1, (*MODEL, *data, *prefixes(data, name), *VALIDATING, *one_by_one)) for name in SETS]
    found = trained(tmp_path_factory.mktemp("alone"), runs)
    return {
        (f"{key}/{name}", iteration): loss for name in SETS for (key, iteration), loss in found[name].items()
    }


MESHES = {
    "meshes": [
        {"tp": 2, "cp": 1, "ep": 1, "dp": 1, "pp": 1, "layers": [[2]]},
        {"tp": 1, "cp": 1, "ep": 1, "dp": 2, "pp": 1, "layers": [[2]]},
    ],
    "cpu_communication": False,
    "extra_micro_batches": 1,
}
PP2 = ["--pipeline-model-parallel-size", "2"]
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "one": (1, []),
    "dp2": (2, []),
    "tp2": (2, ["--tensor-model-parallel-size", "2"]),
    "pp2": (2, PP2),
    "interleaved": (2, [*PP2, "--num-virtual-stages-per-pipeline-rank", "2"]),
    "pp4": (4, ["--pipeline-model-parallel-size", "4"]),
    "tp2 pp2": (4, TP2_PP2),
    "meshes": (4, ["--hetero-layout", json.dumps(MESHES)]),
}


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_set_is_evaluated_as_if_alone_in_every_layout(
    layout: str, data: tuple[str, ...], alone: dict[tuple[str, int], float], tmp_path: Path
) -> None:
    ranks, argv = LAYOUTS[layout]
    several = ("--multiple-validation-sets", *prefixes(data, *SETS))
    found = trained(tmp_path, [Run("run", ranks, (*MODEL, *argv, *data, *VALIDATING, *several))])["run"]
    assert {*found} == {(f"validation_loss/{name}", iteration) for name in SETS for iteration in (2, 4)}
    assert found == pytest.approx(alone, abs=1e-5)
    output = (tmp_path / "run" / "output").read_text()
    assert f"iteration 2/4 | validation loss web {found['validation_loss/web', 2]:.4f}\n" in output


LONG = ("--lr-decay-iters", "9", "--override-opt-param-scheduler")
"""A schedule that a longer run continues."""


def test_sets_have_names_and_intervals_and_at_most_eval_iters(data: tuple[str, ...], tmp_path: Path) -> None:
    """Also: a resume continues the evaluations, and the test data are evaluated as usual."""
    saved = ("--save", str(tmp_path / "saved"), "--load", str(tmp_path / "saved"), "--save-interval", "2")
    argv = (
        *(*MODEL, *data, "--multiple-validation-sets", *prefixes(data, "web", "code")),
        *("--test-data-path", prefixes(data, "books")[1], "--eval-interval", "1", "--eval-iters", "1"),
        *("--validation-set-names", "the web", "code", "--validation-set-intervals", "1", "2"),
    )
    lengths = {"begun": ("2", saved), "resumed": ("3", saved), "whole": ("3", ())}
    runs = [
        Run(name, 2, (*argv, *more, *LONG, "--train-iters", end)) for name, (end, more) in lengths.items()
    ]
    found = trained(tmp_path, runs)
    web, code, test = "validation_loss/the web", "validation_loss/code", "test_loss"
    assert [*found["begun"]] == [(web, 1), (web, 2), (code, 2), (test, 2)]
    # At the end of a training, all sets are evaluated.
    assert [*found["resumed"]] == [(web, 3), (code, 3), (test, 3)]
    del found["begun"][test, 2]
    assert found["begun"] | found["resumed"] == pytest.approx(found["whole"], abs=1e-5)


def test_sets_of_a_file_have_default_names_and_the_number_of_given_names_must_fit(
    data: tuple[str, ...], alone: dict[tuple[str, int], float], tmp_path: Path
) -> None:
    """Only the ranks read the file."""
    file = tmp_path / "sets.json"
    paths = {"train": [data[data.index("--train-data-path") + 1]], "test": None}
    file.write_text(json.dumps({**paths, "valid": [*prefixes(data, "web", "code", "books")[1:]]}))
    without = (*data[: data.index("--train-data-path")], "--per-split-data-args-path", str(file))
    argv = (*MODEL, *without, *VALIDATING, "--multiple-validation-sets")
    named = (*argv, "--validation-set-names", "a", "b")
    curves = run_all([Run("default", 1, argv), Run("named", 1, named)], tmp_path)
    assert not curves["default"].error
    assert validated(tmp_path / "default") == pytest.approx(alone, abs=1e-5)
    assert (
        "--validation-set-names: 2 values for 3 validation sets; give one for each" in curves["named"].error
    )


@pytest.mark.slow
def test_one_whole_set_is_evaluated_on_ranks_without_data(
    data: tuple[str, ...], alone: dict[tuple[str, int], float], tmp_path: Path
) -> None:
    ranks, argv = LAYOUTS["tp2"]
    asked = (*MODEL, *argv, *data, *VALIDATING, *prefixes(data, "web"))
    (found,) = trained(tmp_path, [Run("run", ranks, asked)]).values()
    assert found == pytest.approx(
        {("validation_loss", iteration): alone["validation_loss/web", iteration] for iteration in (2, 4)},
        abs=1e-5,
    )


def test_the_ranks_share_a_set_like_ordinary_evaluations() -> None:
    args: Any = Namespace(eval_micro_batch_size=2, eval_global_batch_size=8, data_parallel_size=2)
    assert batches(2, args, 0) == [[0, 1], [4, 5], [8, 9], [12, 13]]
    assert batches(2, args, 1) == [[2, 3], [6, 7], [10, 11], [14, 15]]
