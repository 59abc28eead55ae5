"""Rules of a training with pictures: between its arguments, and with its data and tokenizer."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks import picture_data, pictures
from flagscale.checks.data import data_violations, input_violations, inputs_of
from flagscale.checks.loading import RANKS
from flagscale.config.catalog import Catalog
from flagscale.errors import Violation
from flagscale_testing.energon_folders import write_folder
from megatron.flagscale.vision.arguments import add_arguments
from tests.unit.rules import Example

PROGRAM = "megatron.flagscale.train_llava"
TILED = {"image_aspect_ratio": "anyres_max_9", "mm_patch_merge_type": "spatial_unpad"}
LAYERS = {"transformer_impl": "torch"}
WRONG: list[tuple[dict[str, Any], str, str]] = [
    (
        {"seq_length": 576},
        "seq_length",
        "seq_length 576 has no room for text: a picture becomes at least 576",
    ),
    ({"packing_buffer_size": -1, **LAYERS}, "packing_buffer_size", "must be at least 0, not -1"),
    ({"shuffle_buffer_size": -1}, "shuffle_buffer_size", "must be at least 0, not -1"),
    ({"max_samples_per_sequence": 0}, "max_samples_per_sequence", "must be at least 1, not 0"),
    ({"max_skipped_samples": -1}, "max_skipped_samples", "must be at least 0, not -1"),
    (
        {"freeze_LM": True, "freeze_ViT": True, "freeze_projector": True},
        "freeze_LM",
        "`freeze_LM`, `freeze_ViT`, `freeze_projector` leave nothing to train",
    ),
    (
        {"packing_buffer_size": 8, "transformer_impl": "transformer_engine"},
        "packing_buffer_size",
        "`packing_buffer_size` needs `transformer_impl: torch`",
    ),
    ({"tokenizer_type": "Llama2Tokenizer"}, "tokenizer_type", "has no token for a picture"),
    ({"vision_hidden_size": 10}, "vision_num_attention_heads", "cannot be divided into 16 attention heads"),
    *(
        (
            {name: "1" if off is None or isinstance(off, tuple) else True},
            name,
            "cannot be used in a training with pictures",
        )
        for name, (off, _) in pictures.REFUSED.items()
    ),
]
"""Changes that break one rule, the argument to blame, and a part of the message."""


@pytest.fixture
def values(catalog: Catalog) -> dict[str, Any]:
    return values_of(catalog)


def values_of(catalog: Catalog) -> dict[str, Any]:
    """Return the defaults of the engine and of `train_llava`, and the arguments that a training needs."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    defaults = {option.dest: option.default for option in catalog.options.values()}
    own = {"seq_length": 2048, "tokenizer_type": "HuggingFaceTokenizer", **LAYERS}
    return {**defaults, **vars(parser.parse_args([])), **own}


@pytest.fixture
def data(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return with_data(values, tmp_path)


def with_data(values: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Return the arguments with a folder of pictures and a tokenizer, relative to `tmp_path`."""
    write_folder(tmp_path / "pictures", {"train": 12, "val": 4})
    write_tokenizer(tmp_path / "tokenizer")
    return {**values, "data_path": ["pictures"], "tokenizer_model": "tokenizer", "eval_iters": 2}


def write_tokenizer(folder: Path, *tokens: str) -> None:
    folder.mkdir(exist_ok=True)
    vocabulary = {token: number for number, token in enumerate(("a", *(tokens or ("<image>", "<video>"))))}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary}}))
    (folder / "chat_template.jinja").touch()


def test_the_defaults_break_no_rule(values: dict[str, Any]) -> None:
    assert pictures.has_pictures(values)
    assert list(pictures.picture_violations(values)) == []


@pytest.mark.parametrize(("changes", "name", "says"), WRONG, ids=lambda one: str(one)[:60])
def test_a_broken_rule_is_reported_once(
    values: dict[str, Any], changes: dict[str, Any], name: str, says: str
) -> None:
    (violation,) = pictures.picture_violations({**values, **changes})
    assert violation[0] == name
    assert says in violation[1]


def test_rules_of_pictures_concern_no_other_training(values: dict[str, Any]) -> None:
    del values["several_images"]
    assert not pictures.has_pictures(values)


@pytest.mark.parametrize(
    ("given", "expected"),
    [((), []), (("img_h", "patch_dim"), ["img_h", "patch_dim"])],
)
def test_the_size_of_the_engines_own_vision_models_is_refused_if_given(
    values: dict[str, Any], given: tuple[str, ...], expected: list[str]
) -> None:
    assert [name for name, _ in pictures.size_violations(values, given)] == expected


def found(values: dict[str, Any], folder: Path) -> list[Violation]:
    return [(name, what.replace(f"{folder}/", "")) for name, what in data_violations(values, folder)]


def test_sound_data_and_tokenizer(data: dict[str, Any], tmp_path: Path) -> None:
    assert found(data, tmp_path) == []
    assert found({**data, "valid_path": ["pictures"], "data_parallel_size": 2}, tmp_path) == []


WRONG_DATA: list[tuple[dict[str, Any], str, str]] = [
    ({"data_path": None}, "data_path", "no data: give `data_path`, an Energon folder or a blend"),
    ({"data_path": ["nowhere"]}, "data_path", "nowhere: no such Energon folder"),
    ({"data_path": ["0.5", "pictures", "0.5", "more"]}, "data_path", "several folders need a blend"),
    ({"data_path": ["msc://x/y"]}, "data_path", "msc://x/y: data in object storage is not supported"),
    ({"valid_path": ["nowhere"]}, "valid_path", "nowhere: no such Energon folder"),
    (
        {"data_parallel_size": 3, "num_workers": 5},
        "data_path",
        "pictures: the split `train` has 12 samples for 15 readers (data parallel size 3, num_workers 5)",
    ),
    (
        {"data_parallel_size": 5, "num_workers": 2},
        "data_path",
        "the split `val` has 4 samples for 5 data parallel ranks: each needs one; hold out more, or set eval",
    ),
    ({"image_token": "<picture>"}, "image_token", "tokenizer has no token '<picture>'"),
    (
        {
            "video_token": "<film>",
            "image_aspect_ratio": "anyres_max_9",
            "mm_patch_merge_type": "spatial_unpad",
        },
        "video_token",
        "tokenizer has no token '<film>', which stands for a video",
    ),
    (
        {"chat_template": "vicunna"},
        "chat_template",
        "is neither a file nor one of chatml, vicuna; did you mean",
    ),
    ({"chat_template": "./mine.jinja"}, "chat_template", "is neither a file nor one of chatml, vicuna"),
    ({"tokenizer_model": "./nowhere"}, "tokenizer_model", "./nowhere: no such tokenizer"),
]


@pytest.mark.parametrize(("changes", "name", "says"), WRONG_DATA, ids=lambda one: str(one)[:60])
def test_wrong_data_or_tokenizer(
    data: dict[str, Any], tmp_path: Path, changes: dict[str, Any], name: str, says: str
) -> None:
    ((blamed, what),) = found({**data, **changes}, tmp_path)
    assert blamed == name
    assert says in what


def test_hosts_find_the_same_in_the_inputs_of_a_job(data: dict[str, Any], tmp_path: Path) -> None:
    changes = {"data_path": ["nowhere"], "image_token": "<x>"}
    inputs = json.loads(json.dumps(inputs_of({**data, **changes}, has_own_data=True)))
    assert [*input_violations(inputs, tmp_path)] == [*data_violations({**data, **changes}, tmp_path)] != []


def test_a_tokenizer_without_a_template_or_that_cannot_be_read(data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "tokenizer" / "chat_template.jinja").unlink()
    ((name, what),) = found(data, tmp_path)
    assert (name, "has no chat template" in what) == ("chat_template", True)
    assert found({**data, "chat_template": "vicuna"}, tmp_path) == []
    (tmp_path / "tokenizer" / "tokenizer_config.json").write_text("{")
    ((name, what),) = found(data, tmp_path)
    assert (name, "cannot be read as JSON" in what) == ("tokenizer_model", True)


def write_sizes(tmp_path: Path, *sizes: tuple[int, int]) -> None:
    facts = {"splits": {"train": {"sizes": [list(size) for size in sizes]}}}
    (tmp_path / "pictures" / "facts.json").write_text(json.dumps(facts))


def test_the_largest_picture_has_to_fit_a_sequence(data: dict[str, Any], tmp_path: Path) -> None:
    write_sizes(tmp_path, (400, 400), (2000, 3000))
    tiled = {**data, **TILED, "vision_model_type": "siglip"}
    ((name, what),) = found(tiled, tmp_path)
    assert name == "seq_length"
    assert what.startswith("pictures: a picture of 2000 x 3000 pixels becomes ")
    assert found({**tiled, "max_skipped_samples": 10}, tmp_path) == []
    assert found({**tiled, "seq_length": 9000}, tmp_path) == []


def remarks(values: dict[str, Any]) -> Iterator[Violation]:
    return picture_data.picture_remarks(values)


def test_pictures_of_unknown_size_deserve_a_notice(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiled = {**data, **TILED, "vision_model_type": "siglip"}
    ((name, what),) = remarks(tiled)
    assert (name, "becomes up to 8829 tokens" in what) == ("seq_length", True)
    assert [*remarks({**tiled, "seq_length": 9000})] == []
    assert [*remarks(data)] == []
    write_sizes(tmp_path, (400, 400))
    assert [*remarks({**tiled, "eval_iters": 0})] == []


def test_an_evaluation_without_data_deserves_a_notice(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "train_only", {"train": 12})
    alone = {**data, "data_path": ["train_only"]}
    assert found(alone, tmp_path) == []
    ((name, what),) = remarks(alone)
    assert (name, "has no effect" in what) == ("eval_iters", True)
    assert [*remarks({**alone, "valid_path": ["pictures"]})] == [*remarks({**alone, "eval_iters": 0})] == []


def test_a_job_takes_to_its_hosts_what_they_check(
    data: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = {"seq_length": 1024, "max_position_embeddings": 1024, "mock_data": None, "vocab_size": None}
    own = {name: data[name] for name in ("data_path", "tokenizer_type", "tokenizer_model", "eval_iters")}
    job = Example({**sizes, **own, "eval_interval": 5}, "", "cpu", entrypoint=PROGRAM).build()
    assert job.packages == ("megatron-energon",)
    assert (job.inputs["data_path"], job.inputs[RANKS]) == (["pictures"], 1)
    assert job.has_own_model


def test_the_launcher_applies_the_rules_to_the_program_alone() -> None:
    changes = {"mock_data": None, "split": "1", "img_h": 5}
    places = {problem.where for problem in Example(changes, "", entrypoint=PROGRAM).report()}
    assert {"train.split", "train.img_h", "train.data_path", "train.tokenizer_type"} <= places
    others = {problem.where for problem in Example(changes, "").report()}
    assert others == {"train.data_path"}
