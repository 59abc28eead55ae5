"""A run remembers what it was: its checkpoints, and the sample index of its data."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest

from flagscale.checks.facts import write_facts
from flagscale.checks.scans import remember_range, stamp
from flagscale.run.checkpoints import ARGUMENTS, read_arguments
from flagscale.run.manifest import MANIFEST, write_manifest
from flagscale_testing.ranks.forked import Curve, Run, run_all
from flagscale_testing.ranks.training import MOCK_DATA, MODEL, read_metrics, saving
from megatron.flagscale.checks import data_problems
from megatron.flagscale.id_range import id_range

pytestmark = pytest.mark.filterwarnings("ignore")
ONE_STEP = ("--train-iters", "1", "--num-layers", "1")
NULL = ("--tokenizer-type", "NullTokenizer", "--vocab-size", "255")


def write_corpus(prefix: Path, documents: list[list[int]]) -> None:
    """Write documents as another tool would: without facts beside them."""
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=numpy.uint16)
    for ids in documents:
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(f"{prefix}.idx")


def test_a_resume_is_compared_with_the_run_that_saved(tmp_path: Path) -> None:
    argv = (*MODEL, *MOCK_DATA, *saving(tmp_path / "checkpoints"))
    assert run_all([Run("first", 1, argv)], tmp_path)["first"].error == ""
    saved = tmp_path / "checkpoints" / "iter_0000006"
    stored = read_arguments(saved)
    assert stored is not None
    assert (stored["hidden_size"], stored["ffn_hidden_size"], stored["seed"]) == (64, None, 1234)

    changed = ("--hidden-size", "128", "--train-iters", "8", "--rotary-base", "5000")
    more = ("--train-iters", "8", "--override-opt_param-scheduler", "--seed", "7")
    curves = run_all([Run("changed", 1, (*argv, *changed)), Run("more", 1, (*argv, *more))], tmp_path)
    for name in ("hidden_size", "train_iters", "rotary_base"):
        assert f"`{name}` is" in curves["changed"].error
    assert f"the checkpoint {saved} was trained with 64: its weights do not fit" in curves["changed"].error
    assert curves["more"].error == ""
    assert len(curves["more"].losses) == 2
    output = (tmp_path / "more" / "output").read_text()
    assert "flagscale: `seed` is 7, but the checkpoint" in output
    assert "which changes the length of the schedule" in output


def test_a_checkpoint_without_a_record_is_compared_by_the_arguments_in_it(tmp_path: Path) -> None:
    argv = (*MODEL, *MOCK_DATA, *saving(tmp_path / "checkpoints"))
    run_all([Run("first", 1, argv)], tmp_path)
    for folder in (tmp_path / "checkpoints").glob("iter_*"):
        (folder / ARGUMENTS).unlink()
        (folder / MANIFEST).unlink()
        write_manifest(folder)
    longer = ("--train-iters", "8")
    runs = [Run("wider", 1, (*argv, "--ffn-hidden-size", "64")), Run("longer", 1, (*argv, *longer))]
    curves = run_all(runs, tmp_path)
    assert "`ffn_hidden_size` is 64, but the checkpoint" in curves["wider"].error
    assert "its weights do not fit" in curves["wider"].error
    assert "`override_opt_param_scheduler: true`" in curves["longer"].error


def test_a_rebuilt_corpus_does_not_meet_the_sample_index_of_the_old_one(tmp_path: Path) -> None:
    def curve(name: str, prefix: Path) -> Curve:
        data = ("--data-path", str(prefix), "--split", "1")
        return run_all([Run(name, 1, (*MODEL, *NULL, *data, *ONE_STEP))], tmp_path)[name]

    old = [[number] * 100 for number in range(1, 41)]
    new = [[number] * 90 for number in range(100, 120)]
    write_corpus(tmp_path / "text", old)
    first = curve("first", tmp_path / "text")
    write_corpus(tmp_path / "text", new)
    write_corpus(tmp_path / "fresh", new)
    rebuilt, fresh = curve("rebuilt", tmp_path / "text"), curve("fresh", tmp_path / "fresh")
    assert first.error == rebuilt.error == fresh.error == ""
    assert rebuilt.losses == fresh.losses != first.losses


def test_the_ids_of_data(tmp_path: Path) -> None:
    write_corpus(tmp_path / "text", [[5, 4, 9], [7]])
    assert id_range(tmp_path / "text") == (4, 9)


def test_the_tokenizer_itself_encodes_the_recorded_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    prefix = tmp_path / "text"
    write_corpus(prefix, [[5, 4, 9]])
    tokenizer = SimpleNamespace(vocab_size=10, tokenize=lambda text: [len(text)])
    values = {"data_path": [str(prefix)], "tokenizer_type": "HuggingFaceTokenizer"}
    assert data_problems(values, tokenizer) == []

    known = {"largest_id": 9, "tokenizers": ["x"], "vocabulary": 10, "sample": {"text": "ab", "ids": [2]}}
    write_facts(prefix, known)
    assert data_problems(values, tokenizer) == []
    write_facts(prefix, {**known, "sample": {"text": "abc", "ids": [2]}})
    (problem,) = data_problems(values, tokenizer)
    assert problem.what == f"{prefix}: its text 'abc' was encoded as [2], but the tokenizer gives [3]"
    write_facts(prefix, {**known, "largest_id": 10})
    (problem,) = data_problems(values, tokenizer)
    assert "contains the token id 10, but the tokenizer has 10 tokens" in problem.what


def test_scanned_data_is_compared_with_any_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_corpus(tmp_path / "text", [[5, 4, 300]])
    remember_range(tmp_path / "text", stamp(tmp_path / "text"), *id_range(tmp_path / "text"))
    assert json.loads(next((tmp_path / "cache").rglob("*.json")).read_text())["largest"] == 300
    values = {"train_data_path": [str(tmp_path / "text")], "tokenizer_type": "SentencePieceTokenizer"}
    (problem,) = data_problems(values, SimpleNamespace(vocab_size=300))
    assert "contains the token id 300, but the tokenizer has 300 tokens (ids 0 to 299)" in problem.what
    assert data_problems({**values, "mock_data": True}, SimpleNamespace(vocab_size=300)) == []


@pytest.mark.parametrize("options", [(), pytest.param(("--bf16",), marks=pytest.mark.slow)])
@pytest.mark.parametrize("is_shared_out", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_switch_says_which_learning_rate_counts(
    tmp_path: Path, options: tuple[str, ...], is_shared_out: bool
) -> None:
    model = [word for word in MODEL if is_shared_out or word != "--use-distributed-optimizer"]
    argv = (*model, *MOCK_DATA, *ONE_STEP, *options, "--save-interval", "1", "--min-lr", "1e-3")
    saved = (*argv, "--save", str(tmp_path / "checkpoints"))
    changed = (
        "--lr",
        "5e-3",
        "--min-lr",
        "1e-4",
        "--train-iters",
        "2",
        "--load",
        str(tmp_path / "checkpoints"),
    )
    switches = {"new": "--override-opt_param-scheduler", "old": "--use-checkpoint-opt_param-scheduler"}
    runs = [Run(name, 1, (*argv, *changed, switch)) for name, switch in switches.items()]
    curves = run_all([Run("first", 1, saved), *runs], tmp_path)
    assert {name: curve.error for name, curve in curves.items()} == dict.fromkeys(curves, "")
    rates = {name: read_metrics(tmp_path / name / "metrics.jsonl")[-1]["learning_rate"] for name in switches}
    assert rates == {"new": 5e-3, "old": 1e-2}
