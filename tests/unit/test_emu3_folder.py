"""Which model folders and names are an Emu3 that draws and reads pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks.emu3_folder import area_of, folder_problem, name_problem
from flagscale.checks.emu3_vocabulary import CODE, END_OF_FRAME, END_OF_IMAGE, END_OF_LINE, END_OF_TEXT

MARKS = (END_OF_LINE, END_OF_FRAME, END_OF_IMAGE, END_OF_TEXT)
IDS = {**{mark: at for at, mark in enumerate(MARKS)}, **{CODE.format(code): 10 + code for code in range(4)}}


def model(folder: Path, **changes: Any) -> Path:
    """Return a folder with the `config.json` of an Emu3 with four codes."""
    config = {"model_type": "emu3", "vocabulary_map": IDS, "vq_config": {"codebook_size": 4}} | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_folder_of_transformers_is_right(tmp_path: Path) -> None:
    assert folder_problem(model(tmp_path)) == ""
    assert area_of(tmp_path) == 518_400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "Emu3", "auto_map": {"AutoConfig": "configuration_emu3.Emu3Config"}},
            "this is BAAI's original form, which runs code of its own and is not supported; convert it with "
            "tools/emu3/convert.py, with the folder of Emu3-VisionTokenizer as --tower",
        ),
        ({"model_type": "Emu3VisionVQ"}, "this is Emu3-VisionTokenizer, only the part that reads pictures"),
        ({"model_type": "emu3_text_model"}, "this is Emu3's language model alone"),
        (
            {"model_type": "llama"},
            "this is not an Emu3 (`model_type` is 'llama'); use one, such as BAAI/Emu3",
        ),
        ({"vocabulary_map": None}, "`vocabulary_map` is missing"),
        (
            {"vocabulary_map": {k: v for k, v in IDS.items() if k != END_OF_FRAME}},
            f"`vocabulary_map` has no id for {END_OF_FRAME}",
        ),
        ({"vq_config": {}}, "has no id for <|visual token 000004|> and 32763 more"),
        (
            {"vocabulary_map": IDS | {CODE.format(2): 7}},
            "`vocabulary_map`: <|visual token 000002|> has id 7, not 12",
        ),
        (
            {"vq_config": {"codebook_size": 4, "channel_multiplier": [1, 2, 4]}},
            "a code stands for 4 x 4 pixels, not 8 x 8",
        ),
        ({"vocabulary_map": [1]}, "`vocabulary_map` takes an object of keys, not [1]"),
        ({"vq_config": "x"}, "`vq_config` takes an object of keys, not 'x'"),
        ({"vq_config": {"codebook_size": "4"}}, "`codebook_size` takes a whole number of at least 1"),
        (
            {"vq_config": {"codebook_size": 4, "channel_multiplier": 3}},
            "`channel_multiplier` takes a list of numbers, not 3",
        ),
        ({"text_config": [1]}, "`text_config` takes an object of keys, not [1]"),
        (
            {"text_config": {"max_position_embeddings": None}},
            "`max_position_embeddings` takes a whole number of at least 1, not None",
        ),
    ],
)
def test_another_model_is_refused_with_the_way(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    problem = folder_problem(model(tmp_path, **changes))
    assert problem.startswith(f"{tmp_path}: ")
    assert message in problem


def test_a_folder_without_a_readable_configuration_is_named_once(tmp_path: Path) -> None:
    assert folder_problem(tmp_path) == f"{tmp_path}: not a model folder (no config.json)"
    (model(tmp_path) / "processor_config.json").write_text("[]")
    assert folder_problem(tmp_path) == f"{tmp_path}/processor_config.json: not a JSON object"
    (tmp_path / "processor_config.json").write_text("{")
    assert folder_problem(tmp_path).startswith(f"{tmp_path}/processor_config.json: cannot be read (")
    (tmp_path / "processor_config.json").write_text('{"image_processor": [3]}')
    assert "`image_processor` takes an object of keys, not [3]" in folder_problem(tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("processor_config.json", {"image_processor": {"image_area": 3072}}),
        ("preprocessor_config.json", {"image_area": 3072}),
    ],
)
def test_the_area_is_found_in_either_file(tmp_path: Path, file: str, content: dict[str, Any]) -> None:
    (tmp_path / file).write_text(json.dumps(content))
    assert area_of(tmp_path) == 3072


def test_published_names_of_the_original_form_are_refused() -> None:
    assert name_problem("BAAI/Emu3-Gen-hf") == name_problem("somebody/emu3") == ""
    assert "use BAAI/Emu3-Gen-hf, or convert it with tools/emu3/convert.py" in name_problem("BAAI/Emu3-Gen")
    assert "use BAAI/Emu3-Chat-hf" in name_problem("BAAI/Emu3-Chat")
    assert "only the part that reads pictures" in name_problem("BAAI/Emu3-VisionTokenizer")
