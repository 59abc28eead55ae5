"""The arguments of the vision part, and the number of tokens of a picture."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import pytest

from flagscale.errors import UserError
from flagscale.vision.arguments import arguments_of, vision_of, vision_violations
from flagscale.vision.tiling import Tiling, Vision, best_grid, image_tokens, most_image_tokens, video_tokens
from flagscale.vision.tower import TOWERS
from megatron.flagscale.vision.arguments import add_arguments

ONEVISION = {
    "vision_model_type": "siglip",
    "image_aspect_ratio": "anyres_max_9",
    "mm_patch_merge_type": "spatial_unpad",
}


def values(**given: Any) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return {**vars(parser.parse_args([])), **given}


def test_the_defaults_are_llava() -> None:
    vision = vision_of(values())
    assert vision == Vision(TOWERS["clip"])
    assert image_tokens((480, 640), vision) == 576


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"vision_patch_size": 28, "image_aspect_ratio": "pad", "image_token": "<i>", "video_frames": 3},
        {**ONEVISION, "several_images": "single"},
        {**ONEVISION, "image_grid_pinpoints": "(1x1),...,(2x3)", "vision_num_layers": 2},
    ],
)
def test_a_vision_part_is_described_by_its_arguments(given: dict[str, Any]) -> None:
    vision = vision_of(values(**given))
    described = arguments_of(vision)
    assert described.keys() <= values().keys()
    assert vision_of(described) == vision


def test_onevision() -> None:
    vision = vision_of(values(**ONEVISION))
    assert vision.tiling is not None
    assert len(vision.tiling.grids) == 36
    # The figures of transformers 5.19 for llava-onevision-qwen2-0.5b-ov-hf.
    assert image_tokens((384, 384), vision) == 27 * 27 + 27 * 28
    assert video_tokens(8, vision) == 8 * 196 + 1
    assert image_tokens((480, 640), vision, pictures=2) == image_tokens((480, 640), vision)
    single = replace(vision, tiling=replace(vision.tiling, tiles_several=False))
    assert image_tokens((480, 640), single, pictures=2) == 27 * 27 + 1


def test_no_picture_has_more_tokens_than_the_most() -> None:
    vision = vision_of(values(**ONEVISION))
    sizes = [(height, width) for height in range(1, 2600, 171) for width in range(1, 2600, 173)]
    assert max(image_tokens(size, vision) for size in sizes) <= most_image_tokens(vision)


def test_of_equal_grids_the_smallest_is_chosen() -> None:
    assert best_grid((10, 10), ((60, 60), (30, 30), (30, 60))) == (30, 30)


@pytest.mark.parametrize("text", ["[[384, 384], [384, 768]]", "(384, 384), (384,768)", "(1x1),...,(1x2)"])
def test_grids(text: str) -> None:
    vision = vision_of(values(**ONEVISION, image_grid_pinpoints=text))
    assert vision.tiling == Tiling(((384, 384), (384, 768)), 9)


@pytest.mark.parametrize(
    ("given", "blamed"),
    [
        ({"vision_num_layers": 0}, "vision_num_layers"),
        ({"vision_num_attention_heads": 7}, "vision_num_attention_heads"),
        ({"vision_patch_size": 400}, "vision_patch_size"),
        ({"image_aspect_ratio": "anyres"}, "image_aspect_ratio"),
        ({"image_aspect_ratio": "anyres_max_9"}, "mm_patch_merge_type"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "mm_patch_merge_type"),
        ({"image_grid_pinpoints": "(1x1),...,(6x6)"}, "image_grid_pinpoints"),
        ({"several_images": "single"}, "several_images"),
        ({**ONEVISION, "image_grid_pinpoints": "[[384, 385]]"}, "image_grid_pinpoints"),
        ({**ONEVISION, "image_grid_pinpoints": "many"}, "image_grid_pinpoints"),
        ({**ONEVISION, "image_grid_pinpoints": "(1x1),...,(99999x99999)"}, "image_grid_pinpoints"),
        ({**ONEVISION, "image_grid_pinpoints": "[[384, 38400000]]"}, "image_grid_pinpoints"),
        ({**ONEVISION, "image_grid_pinpoints": "[[384, 384], [384]]"}, "image_grid_pinpoints"),
        ({**ONEVISION, "image_grid_pinpoints": "[[384, 384], [768, 384"}, "image_grid_pinpoints"),
        ({"video_token": "<image>"}, "video_token"),
    ],
)
def test_violations(given: dict[str, Any], blamed: str) -> None:
    assert [name for name, _ in vision_violations(values(**given))] == [blamed]
    with pytest.raises(UserError, match=blamed):
        vision_of(values(**given))
