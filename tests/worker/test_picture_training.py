"""Trainings that read pictures with Energon: killed and resumed, they give the losses of one that was not."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from flagscale.run.checkpoints import TRACKER, folder_of
from flagscale_testing.energon import conversation, write_folder
from flagscale_testing.pictures import write_tokenizer
from flagscale_testing.ranks.forked import Run, run_all
from flagscale_testing.ranks.layouts import COMMON, LLAMA, ONEVISION
from flagscale_testing.ranks.training import read_metrics

SAMPLES, CUT_OFF, LAST, SAVED = 64, (3, 40), 6, 3
_MODEL = f"{COMMON} {LLAMA} {ONEVISION}"
for _other in ("--tokenizer-type NullTokenizer --vocab-size 255", "--image-token 250 --video-token 251"):
    _MODEL = _MODEL.replace(_other, "")
MODEL = f"""{_MODEL} --tokenizer-type HuggingFaceTokenizer --train-iters {LAST} --save-interval {SAVED}
    --eval-iters 1 --eval-interval 3 --shuffle-buffer-size 6"""
ASYNC = "--async-save"
SAME_VOCABULARY = "--make-vocab-size-divisible-by 144"
FIRST = {
    "no workers": (1, "--num-workers 0"),
    "4 workers": (1, f"--num-workers 4 {ASYNC}"),
    "torch": (1, "--num-workers 1 --ckpt-format torch"),
    "packed": (1, "--num-workers 0 --packing-buffer-size 8 --seq-length 704 --max-position-embeddings 704"),
}
"""Runs that save at the third of six steps: ranks and arguments."""
RESUMED = {
    "no workers again": ("no workers", 1, "--num-workers 0"),
    "one worker": ("no workers", 1, "--num-workers 1"),
    "4 workers again": ("4 workers", 1, "--num-workers 4"),
    "2 ranks": ("4 workers", 2, "--num-workers 2"),
    "4 ranks": ("4 workers", 4, "--num-workers 1"),
    "CP2": ("4 workers", 2, "--num-workers 4 --context-parallel-size 2"),
    "interleaved": (
        "4 workers",
        2,
        "--num-workers 4 --pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2",
    ),
    "PP2": ("4 workers", 2, "--num-workers 4 --pipeline-model-parallel-size 2"),
    "TP2": ("4 workers", 2, f"--num-workers 4 --tensor-model-parallel-size 2 {SAME_VOCABULARY}"),
    "torch again": ("torch", 1, "--num-workers 1 --ckpt-format torch"),
    "packed again": ("packed", *FIRST["packed"]),
}
"""Runs that continue one of these: its name, ranks and arguments."""
QUICK = ("4 workers", "2 ranks")
"""The runs without `--slow`."""


def _each(*names: str) -> list[Any]:
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Return the folder of all runs, or without `--slow` of the quick ones."""
    names = {*FIRST, *RESUMED} if request.config.getoption("--slow") else {*QUICK}
    folder = tmp_path_factory.mktemp("pictures")
    write_tokenizer(folder / "tokenizer")
    samples = [conversation(number) for number in range(SAMPLES)]
    for number in CUT_OFF:
        samples[number] = conversation(number, samples[number]["image0.png"][:-30])
    write_folder(folder / "data", samples, shards=4, split=(0.75, 0.25, 0))
    data = f"--tokenizer-model {folder}/tokenizer --data-path {folder}/data"

    def asked(name: str, ranks: int, options: str) -> Run:
        save = f"--save {folder}/{name.replace(' ', '-')}-saved"
        argv = shlex.split(f"{MODEL} {data} {save} {options}")
        return Run(name, ranks, tuple(argv), "flagscale_testing.energon:train")

    run_all([asked(name, *run) for name, run in FIRST.items() if name in names], folder)
    again = []
    for name in names & {*RESUMED}:
        first, ranks, options = RESUMED[name]
        load = folder / f"{name.replace(' ', '-')}-load"
        _copy(folder / f"{first.replace(' ', '-')}-saved", load, SAVED)
        again.append(asked(name, ranks, f"{options} --load {load}"))
    run_all(again, folder)
    return folder


def _copy(saved: Path, load: Path, iteration: int) -> None:
    """Copy one checkpoint, as if its run had been killed before the next."""
    shutil.copytree(saved / folder_of(iteration), load / folder_of(iteration))
    (load / TRACKER).write_text(str(iteration))


def _losses(folder: Path, name: str, key: str = "lm_loss") -> dict[int, float]:
    assert not (folder / name / "failed").exists(), (folder / name / "failed").read_text()
    lines = read_metrics(folder / name / "metrics.jsonl")
    return {line["iteration"]: line[key] for line in lines if key in line}


@pytest.mark.parametrize("name", _each(*RESUMED))
def test_a_resumed_training_gives_the_losses_of_one_that_was_not(runs: Path, name: str) -> None:
    whole = _losses(runs, RESUMED[name][0])
    assert [*whole] == [*range(1, LAST + 1)]
    expected = {step: loss for step, loss in whole.items() if step > SAVED}
    assert _losses(runs, name) == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("name", _each("2 ranks", "PP2", "4 workers again"))
def test_an_evaluation_does_not_depend_on_the_layout_or_the_start(runs: Path, name: str) -> None:
    whole = _losses(runs, RESUMED[name][0], "validation_loss")
    assert _losses(runs, name, "validation_loss")[LAST] == pytest.approx(whole[LAST], rel=2e-5)


@pytest.mark.parametrize("name", _each(*FIRST, *RESUMED))
def test_skipped_samples_are_among_the_metrics(runs: Path, name: str) -> None:
    counts = _losses(runs, name, "skipped_samples")
    assert [*counts.values()] == sorted(counts.values())
    if "packed" not in name:  # which reads several epochs
        assert counts[LAST] <= len(CUT_OFF)
    if name in RESUMED:
        assert counts[LAST] == _losses(runs, RESUMED[name][0], "skipped_samples")[LAST]


@pytest.mark.parametrize("name", _each(*FIRST))
def test_the_manifest_lists_the_places_of_the_readers(runs: Path, name: str) -> None:
    for iteration in (SAVED, LAST):
        folder = runs / f"{name.replace(' ', '-')}-saved" / folder_of(iteration)
        files = json.loads((folder / "manifest.json").read_text())["files"]
        assert "loader/rank_00000.json" in files
