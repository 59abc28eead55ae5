"""Folders of LLaVA models: what vLLM would refuse late, or compute wrongly without a message."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks.model_folder import problems, sees_pictures
from flagscale.engines.vllm.pictures import limit_violations, picture_remarks, tower_violations
from tests.unit.vllm_jobs import gpus, job_of, refusal

Write = Callable[..., Path]
WriteTensors = Callable[..., None]

TOWER = "vision_tower.vision_model.embeddings.patch_embedding.weight"
EMBEDDING, OUTPUT = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
FACTS: dict[str, Any] = {
    "architectures": ["LlavaOnevisionForConditionalGeneration"],
    "model_type": "llava_onevision",
    "text_config": {"model_type": "qwen2", "hidden_size": 128, "num_attention_heads": 4},
    "vision_config": {"model_type": "siglip_vision_model", "num_attention_heads": 3},
}


@pytest.fixture
def write_llava(write_model: Write, write_tensors: WriteTensors) -> Write:
    """Write a small folder of a model that reads pictures, with tensors of these names."""

    def write(folder: Path, *names: str, **config: Any) -> Path:
        write_model(folder, **{**FACTS, **config})
        (folder / "preprocessor_config.json").write_text("{}")
        write_tensors(
            folder / "model.safetensors", **dict.fromkeys(names or (TOWER, EMBEDDING, OUTPUT), b"1")
        )
        return folder

    return write


@pytest.mark.parametrize("kind", ["llava", "llava_onevision"])
def test_a_sound_folder(kind: str, tmp_path: Path, write_llava: Write) -> None:
    assert list(problems(write_llava(tmp_path / "m", model_type=kind))) == []


@pytest.mark.parametrize("prefix", ["vision_tower.", "model.vision_tower."])
def test_names_of_the_tower_that_only_transformers_reads(
    prefix: str, tmp_path: Path, write_llava: Write
) -> None:
    name = f"{prefix}embeddings.patch_embedding.weight"
    (what,) = problems(write_llava(tmp_path / "m", name, EMBEDDING, OUTPUT))
    assert f"rename `{name}` to `{prefix}vision_model.embeddings.patch_embedding.weight`" in what


def test_a_language_part_without_an_output_layer(tmp_path: Path, write_llava: Write) -> None:
    for embedding in (EMBEDDING, "model.language_model.embed_tokens.weight"):
        (what,) = problems(write_llava(tmp_path / "m", TOWER, embedding))
        assert "contains no output layer (language_model.lm_head.weight)" in what
    for tied in ({"tie_word_embeddings": True}, {"text_config": {"tie_word_embeddings": True}}):
        assert list(problems(write_llava(tmp_path / "m", TOWER, EMBEDDING, **tied))) == []
    assert list(problems(write_llava(tmp_path / "m", TOWER, EMBEDDING, "lm_head.weight"))) == []


def test_a_folder_without_a_processor(tmp_path: Path, write_llava: Write) -> None:
    folder = write_llava(tmp_path / "m")
    (folder / "preprocessor_config.json").rename(folder / "processor_config.json")
    assert list(problems(folder)) == []
    (folder / "processor_config.json").unlink()
    (what,) = problems(folder)
    assert what.startswith(f"{folder}: contains no preprocessor_config.json or processor_config.json")
    keys = {"model": str(folder), "max_model_len": 128}
    assert "contains no preprocessor_config.json" in refusal(tmp_path, "serve", keys, hosts=gpus(1))
    none = {"limit_mm_per_prompt": {"image": 0, "video": 0}}
    job = job_of(tmp_path, "serve", {**keys, **none}, hosts=gpus(1))
    assert job.inputs["models"][0]["limit_mm_per_prompt"], "the hosts decide by the same arguments"


@pytest.mark.parametrize(
    ("limits", "sees"),
    [
        (None, True),
        ("{}", True),
        ({"image": 0}, True),
        ({"image": 0, "video": 0}, False),
        ('{"image": 0, "video": {"count": 0}}', False),
        ({"image": 1, "video": 0}, True),
    ],
)
def test_whether_a_model_sees_pictures(limits: object, sees: bool) -> None:
    assert sees_pictures({"limit_mm_per_prompt": limits}) == sees


def test_limits_that_vllm_would_ignore() -> None:
    limits = {"images": 3, "image": -1, "video": {"count": -2, "num_frames": 8}, "audio": 0}
    first, second, third = (what for _, what in limit_violations({"limit_mm_per_prompt": json.dumps(limits)}))
    assert "limits `images`, which is no input of a model (did you mean `image`?)" in first
    assert "limits `image` to -1" in second
    assert "limits `video` to -2" in third


def test_a_tower_that_cannot_be_divided() -> None:
    ((name, what),) = tower_violations({"tensor_parallel_size": 2}, FACTS)
    assert (name, "tower's 3 attention heads" in what, "mm_encoder_tp_mode: data" in what) == (
        "tensor_parallel_size",
        True,
        True,
    )
    whole = {"tensor_parallel_size": 2, "mm_encoder_tp_mode": "data"}
    for values, config in ((whole, FACTS), ({"tensor_parallel_size": 3}, FACTS), (whole, {})):
        assert list(tower_violations(values, config)) == []


def test_a_clip_tower_that_leaves_pixels_over() -> None:
    def blamed(kind: str, side: int) -> list[str]:
        tower = {"model_type": f"{kind}_vision_model", "image_size": side, "patch_size": 14}
        config = {"model_type": "llava", "vision_config": tower}
        return [name for name, _ in tower_violations({"tensor_parallel_size": 1}, config)]

    assert blamed("clip", 30) == ["model"]
    assert blamed("clip", 336) == blamed("siglip", 384) == []


def test_the_tower_of_a_folder_is_read(tmp_path: Path, write_llava: Write) -> None:
    keys = {"model": str(write_llava(tmp_path / "m")), "tensor_parallel_size": 2}
    assert "the vision tower's 3 attention heads cannot be divided" in refusal(
        tmp_path, "serve", keys, hosts=gpus(2)
    )


def test_other_pixels_than_in_training_are_remarked(tmp_path: Path, write_llava: Write) -> None:
    folder = write_llava(tmp_path / "m")
    (note,) = job_of(tmp_path, "serve", {"model": str(folder)}, hosts=gpus(1)).notices
    assert "`mm_processor_kwargs: {use_fast: false}` makes them equal" in note
    for chosen in ({"use_fast": False}, {"use_fast": True}):
        keys = {"model": str(folder), "mm_processor_kwargs": chosen}
        assert job_of(tmp_path, "serve", keys, hosts=gpus(1)).notices == ()
    chosen = {"mm_processor_kwargs": {"use_fast": False}}
    grids = [[side * rows, side * 2] for side in (30,) for rows in (1, 3)]
    sized = {**FACTS, "vision_config": {"image_size": 30}, "image_grid_pinpoints": grids}
    for limit, is_named in (("anyres_max_4", True), ("anyres_max_5", False), ("anyres_max_9", False)):
        named = [name for name, _ in picture_remarks(chosen, {**sized, "vision_aspect_ratio": limit})]
        assert named == ["model"] * is_named
    assert list(picture_remarks({"limit_mm_per_prompt": '{"image": 0, "video": 0}'}, FACTS)) == []
    assert list(picture_remarks({}, {"model_type": "llama"})) == []
