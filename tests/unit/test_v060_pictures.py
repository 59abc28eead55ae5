"""The keys of FlagScale v0.6.0's trainings on pictures, and what they become."""

from __future__ import annotations

from typing import Any

import pytest

from flagscale.config.engine_args import Unknown
from flagscale.config.v060.pictures import KIND
from tests.unit.test_v060_translate import translate

LLAVA = {KIND: "vicuna_7b", "disable_vision_class_token": True, "img_h": 336, "img_w": 336, "patch_dim": 14}
ONEVISION = {**LLAVA, KIND: "qwen2_1.5b", "vision_model_type": "siglip", "img_h": 384, "img_w": 384}
TEXT = {"seq_length": 2048, "max_position_embeddings": 4096}


def kept(tree: dict[str, Any]) -> dict[str, Any]:
    found, _, _, problems = translate(tree)
    assert problems == []
    return found


def test_the_length_of_llava_did_not_include_the_picture() -> None:
    assert kept({**LLAVA, **TEXT}) == {"seq_length": 2624, "max_position_embeddings": 4096}
    assert kept({**LLAVA, **TEXT, "max_position_embeddings": 2048})["max_position_embeddings"] == 2624


def test_the_length_of_onevision_was_that_of_the_positions() -> None:
    assert kept({**ONEVISION, **TEXT, "interleaved_dataset": True})["seq_length"] == 4096


@pytest.mark.parametrize("kind", ["qwen2_1.5b", "qwen2_7b", "qwen2.5_1.5b", "qwen2.5_7b"])
def test_qwen_stands_for_its_biases_and_activation(kind: str) -> None:
    found = kept({**ONEVISION, KIND: kind})
    assert {name: found[name] for name in ("add_qkv_bias", "disable_bias_linear", "swiglu")} == {
        "add_qkv_bias": True,
        "disable_bias_linear": True,
        "swiglu": True,
    }
    assert "add_qkv_bias" not in kept(LLAVA)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"img_h": 224, "img_w": 224}, {"vision_image_size": 224}),
        ({"patch_dim": 28}, {"vision_patch_size": 28}),
        ({"img_h": "336", "patch_dim": "14"}, {}),
    ],
)
def test_the_size_of_a_tile_is_that_of_the_tower_or_a_key(
    changes: dict[str, Any], expected: dict[str, int]
) -> None:
    assert kept({**LLAVA, **changes}) == expected


def test_without_sizes_the_defaults_of_the_engine_applied() -> None:
    given = {KIND: "vicuna_7b", "disable_vision_class_token": True}
    found, _, notices, _ = translate(given)
    assert found == {"vision_image_size": 224, "vision_patch_size": 16}
    assert any("which had a default of the engine" in notice for notice in notices)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"img_w": 224}, "a tile is a square"),
        ({"img_h": 0}, "`img_h: 0` is not a positive whole number"),
        ({"patch_dim": "x"}, "`patch_dim: x` is not a positive whole number"),
        ({"disable_vision_class_token": False}, "`disable_vision_class_token` must be true"),
        ({"prompt_path": "prompts.json"}, "no longer supported"),
        ({"use_pos_skipping": True}, "no longer supported"),
    ],
)
def test_what_cannot_work_is_refused_by_name(changes: dict[str, Any], says: str) -> None:
    _, _, _, (problem,) = translate({**LLAVA, **changes})
    assert says in problem.what
    assert problem.where == f"train.{next(iter(changes)).replace('img_w', 'img_h')}"


def test_a_missing_class_token_is_refused_at_the_key_that_is_there() -> None:
    _, _, _, (problem,) = translate({KIND: "vicuna_7b", "img_h": 336, "img_w": 336, "patch_dim": 14})
    assert (problem.where, problem.what[:28]) == (f"train.{KIND}", "`disable_vision_class_token`")


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("split", "100,0,0", "the folder's own splits count"),
        ("eod_mask_loss", True, "only answers have a loss"),
        ("apply_layernorm_1p", True, "v0.6.0 did not apply it"),
        ("dataset_config", "x.yaml", "v0.6.0 did not read it"),
        ("dataloader_save", "./x", "part of each checkpoint"),
        ("interleaved_dataset", True, "the samples themselves show their form"),
        ("use_te", True, "transformer_impl chooses the layers"),
        ("allow_missing_vision_projection_checkpoint", True, "tools/checkpoint/convert.py draws a projector"),
        ("pos_skipping_range", 4096, "used only with use_pos_skipping"),
        ("training_dataset_only", False, "it has no effect"),
    ],
)
def test_what_has_no_effect_is_dropped_with_a_note(name: str, value: object, why: str) -> None:
    found, _, notices, problems = translate({**LLAVA, name: value})
    assert problems == []
    assert name not in found
    assert any(notice.startswith(f"train.{name}: dropped because") and why in notice for notice in notices)


def test_a_training_without_validation_evaluates_nothing() -> None:
    assert kept({**LLAVA, "training_dataset_only": True, "eval_iters": 10}) == {"eval_iters": 0}
    assert kept({**LLAVA, "training_dataset_only": True}) == {"eval_iters": 0}


def test_pictures_that_were_tiled_by_the_data_tool_are_mentioned() -> None:
    _, _, notices, _ = translate({**ONEVISION, "interleaved_dataset": True})
    assert any("each picture is now one tile" in notice for notice in notices)
    tiled = {"image_aspect_ratio": "anyres_max_9", "mm_patch_merge_type": "spatial_unpad"}
    found, _, notices, _ = translate({**ONEVISION, "interleaved_dataset": True, **tiled})
    assert tiled.items() <= found.items()
    assert not any("each picture is now one tile" in notice for notice in notices)


def test_the_keys_of_other_trainings_stay() -> None:
    others = {"split": "1", "eod_mask_loss": True, "img_h": 5, "apply_layernorm_1p": True}
    assert kept(others) == others


@pytest.mark.parametrize("name", [KIND, "img_h", "disable_vision_class_token", "training_dataset_only"])
def test_a_key_that_cannot_be_read_is_reported_once(name: str) -> None:
    _, _, _, problems = translate({**LLAVA, **TEXT, "training_dataset_only": True, name: Unknown.VALUE})
    assert problems == []
