"""The harness on tiny models: scores computed apart, checkpoints, mistakes, and its catalog."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.worker.evaluation.conftest import FP32, records_of, scores_in

pytestmark = pytest.mark.slow


def test_scores_of_a_folder_are_those_computed_apart(
    evaluate: Callable[..., int],
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from flagscale.run.env import PROGRESS_FILE
    from flagscale_testing.evaluated import QUESTIONS, accuracies, reference

    monkeypatch.setenv(PROGRESS_FILE, str(tmp_path / "progress.json"))
    words = ("--pretrained", str(model), *FP32, "--log_samples", "--batch_size", "4")
    assert evaluate(*words, task=("local_choice", "local_answer")) == 0
    out, expected = tmp_path / "out", reference(model)
    right = expected.choices(bos=True)
    acc, normed = accuracies(right)
    found = scores_in(out)
    assert found == {("tiny", "acc"): acc, ("tiny", "acc_norm"): normed, ("tiny", "exact_match"): 0.0}
    assert 0 < acc < 1, "a score that every mistake would give shows nothing"
    records = records_of(out, "local_choice")
    assert len(records) == len(QUESTIONS)
    for record, one in zip(records, right, strict=True):
        assert [float(pair[0]) for pair in record["filtered_resps"]] == pytest.approx(one, abs=1e-4)
    answers = [record["filtered_resps"][0] for record in records_of(out, "local_answer")]
    assert answers == expected.answers()
    printed = capsys.readouterr().out
    assert re.search(rf"local_choice +acc ↑ +{acc:.4f} +0\.\d+ +0 +{len(QUESTIONS)}", printed)
    assert (out / "results.txt").read_text() in printed
    assert not (out / "results.svg").exists(), "a picture compares models"
    total = len(QUESTIONS) * 4
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert progress == {"done": total, "total": total, "unit": "requests", "tokens_per_s": None}


def test_checkpoints_are_converted_and_compared(
    evaluate: Callable[..., int], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flagscale_testing.evaluated import accuracies, reference, write_model
    from megatron.flagscale.convert.convert import convert

    folder = tmp_path / "checkpoints"
    for iteration, seed in ((10, 0), (20, 1)):
        made = convert(write_model(tmp_path / f"hf_{seed}", seed), tmp_path / f"mg_{seed}")
        (release,) = made.target.glob("release")
        shutil.copytree(release, folder / f"iter_{iteration:07d}")
    words = ("--checkpoints", str(folder), "--iterations", "all", *FP32)
    assert evaluate(*words) == 2
    printed = capsys.readouterr().out
    assert "flagscale: error: no tokenizer is stored with this checkpoint (2 places)" in printed
    assert f"{folder}/iter_0000010" in printed
    (folder / "iter_0000020" / ".metadata").rename(tmp_path / "metadata")
    (folder / "iter_0000020" / "manifest.json").rename(tmp_path / "manifest")
    assert evaluate("--checkpoints", str(folder), "--iterations", "15", "20", *FP32) == 2
    printed = capsys.readouterr().out
    assert f"{folder}: no checkpoint of iteration 15 found; there are 20, 10" in printed
    assert f"{folder}/iter_0000020: the checkpoint cannot be used: its save was not finished" in printed
    (tmp_path / "metadata").rename(folder / "iter_0000020" / ".metadata")
    (tmp_path / "manifest").rename(folder / "iter_0000020" / "manifest.json")
    (folder / "iter_0000030").mkdir()
    assert evaluate(*words, "--tokenizer", str(model)) == 0
    assert f"{folder}/iter_0000030 is left out: its save was not finished" in capsys.readouterr().out
    out, found = tmp_path / "out", scores_in(tmp_path / "out")
    for iteration, seed in ((10, 0), (20, 1)):
        acc, normed = accuracies(reference(tmp_path / f"hf_{seed}").choices(bos=True))
        name = f"iter_{iteration:07d}"
        assert (found[name, "acc"], found[name, "acc_norm"]) == (acc, normed)
    assert {one["iteration"] for one in json.loads((out / "results.json").read_text())} == {10, 20}
    assert ">iteration<" in (out / "results.svg").read_text()
    assert not list((out / "converted").iterdir()), "what was converted is removed"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"doc_to_text": "{{nothing}}"}, "`bad` cannot be loaded: UndefinedError: 'nothing' is undefined"),
        ({"test_split": "tests"}, "`bad` cannot be loaded: KeyError: 'tests'"),
        (
            {"metric_list": [{"metric": "accu", "aggregation": "mean", "higher_is_better": True}]},
            "task `bad`: unknown metric `accu`; did you mean `acc`?",
        ),
    ],
)
def test_mistakes_in_a_task_are_reported_before_a_model_is_opened(
    evaluate: Callable[..., int],
    tasks: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    keys: dict[str, Any],
    message: str,
) -> None:
    task = json.loads((tasks / "local_choice.yaml").read_text())
    (tmp_path / "bad.yaml").write_text(json.dumps({**task, "task": "bad", **keys}))
    words = ("--pretrained", str(tmp_path / "missing"), "--include_path", str(tmp_path))
    assert evaluate(*words, task=("bad",)) == 2
    assert f"flagscale: error: task {message.removeprefix('task ')}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [("--checkpoints", "{}", "--iterations", "30"), ("--checkpoints", "{}")])
def test_a_missing_checkpoint_ends_it_with_code_2(
    evaluate: Callable[..., int], tmp_path: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(*(word.format(tmp_path) for word in words)) == 2
    assert "flagscale: error: " in capsys.readouterr().out
    assert not (tmp_path / "out" / "results.json").exists()


def test_the_catalog_is_that_of_the_installed_harness() -> None:
    from flagscale.engines.lm_eval.catalog import harness_catalog, task_names
    from megatron.flagscale.evaluation.catalog import build_catalog, packed

    names = {"arc", "arc_easy", "arc_easy_mt", "lambada"}
    assert task_names(packed(names)) == names
    built = build_catalog()
    known = harness_catalog()
    assert (built["engine"], built["version"]) == (known.run.engine, known.run.version), "make catalog"
    assert {*built["arguments"]} == {*known.run.options}
    assert task_names(built["tasks"]) == known.tasks
    assert {*built["task_keys"]} == known.task_keys
    assert tuple(built["output_types"]) == known.output_types
