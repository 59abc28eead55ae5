"""Megatron's model with pictures against that of transformers: logits, gradients, mutations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from megatron.training.models.gpt import GPTModelConfig

from flagscale.vision.tiling import unpadded
from flagscale_testing.llava_cases import (
    CASES,
    GRADIENTS,
    MODELS,
    TOLERANCE,
    Batch,
    batch,
    difference,
    expected_gradients,
    expected_logits,
    of_transformers,
    probe,
)
from flagscale_testing.llava_models import IMAGE, load, matched
from flagscale_testing.one_rank import creating_on, one_rank
from megatron.flagscale.layers.spec import layer_spec
from megatron.flagscale.vision import arrange, pictures, tower
from megatron.flagscale.vision.arrange import _grid as grid
from megatron.flagscale.vision.arrange import arranged
from megatron.flagscale.vision.media import Item, Media

CPU = torch.device("cpu")
RECOMPUTE: dict[str, dict[str, Any]] = {
    "every layer": {
        "recompute_granularity": "full",
        "recompute_method": "uniform",
        "recompute_num_layers": 2,
    },
    "one layer": {"recompute_granularity": "full", "recompute_method": "block", "recompute_num_layers": 1},
    "parts": {"recompute_granularity": "selective", "recompute_modules": ["core_attn", "layernorm", "mlp"]},
}


def nearest(grids: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return torch.nn.functional.interpolate(grids.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)


@pytest.fixture(autouse=True, scope="module")
def alone() -> Iterator[None]:
    """Run as the only rank of a job."""
    with one_rank(1), creating_on(CPU):
        yield


def build(model: str, **settings: Any) -> torch.nn.Module:
    """Return Megatron's model with the weights of transformers."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    from megatron.flagscale.vision.builder import LlavaBuilder

    groups = ProcessGroupCollection.use_mpu_process_groups()
    gpt: torch.nn.Module = LlavaBuilder(MODELS[model].config(**settings)).build_model(groups)
    load(gpt, of_transformers(model).state_dict(), MODELS[model])
    return gpt


built = cache(build)


def logits(gpt: torch.nn.Module, given: Batch) -> torch.Tensor:
    found: torch.Tensor = gpt(given.tokens, given.positions, None, media=given.media)
    return found


def error(case: str, gpt: torch.nn.Module) -> float:
    given = batch(case)
    with torch.no_grad():
        return difference(logits(gpt, given), expected_logits(case, given), given.kept)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(case: str) -> None:
    assert error(case, built(CASES[case][0])) <= TOLERANCE


@pytest.mark.parametrize(
    ("case", "recompute"),
    [
        (GRADIENTS[0], "nothing"),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (
                *((case, "nothing") for case in GRADIENTS[1:]),
                *((GRADIENTS[0], recomputed) for recomputed in RECOMPUTE),
            )
        ),
    ],
)
def test_gradients_of_every_weight_equal_those_of_transformers(case: str, recompute: str) -> None:
    model, given = CASES[case][0], batch(case)
    gpt = build(model, **RECOMPUTE.get(recompute, {}))
    (logits(gpt, given) * probe(given)).sum().backward()
    for name, parameter, expected in matched(gpt, expected_gradients(case, given), MODELS[model]):
        assert parameter.grad is not None, name
        assert (parameter.grad - expected).norm() <= TOLERANCE * expected.norm(), name


MUTATIONS: dict[str, tuple[str, Callable[[pytest.MonkeyPatch], Any]]] = {
    "the tower attends to earlier positions only": (
        "one small picture",
        lambda patch: patch.setattr(
            tower, "_layers", lambda config: layer_spec(GPTModelConfig(transformer=config))
        ),
    ),
    "another activation in the tower": (
        "LLaVA-1.5",
        lambda patch: patch.setitem(tower._ACTIVATIONS, "quick_gelu", torch.nn.functional.gelu),
    ),
    "pixels are not normalized": (
        "LLaVA-1.5",
        lambda patch: patch.setattr(tower, "_normalized", lambda tiles, _: tiles / 255),
    ),
    "the tiles of a grid are in another order": (
        "CLIP with tiles",
        lambda patch: patch.setattr(arrange, "_grid", lambda tiles, *rest: grid(tiles.flip(0), *rest)),
    ),
    "the wrong half of the padding is cut off": (
        "one picture of odd size",
        lambda patch: patch.setattr(arrange, "unpadded", lambda *given: replace(unpadded(*given), top=0)),
    ),
    "features are shrunk to the nearest ones": (
        "36 tiles, shrunk",
        lambda patch: patch.setattr(arrange, "_resized", nearest),
    ),
    "pictures are in another order": (
        "adjacent pictures",
        lambda patch: patch.setattr(pictures, "arranged", lambda *given: arranged(*given)[::-1]),
    ),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_change_of_the_computation_is_noticed(mutation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, mutate = MUTATIONS[mutation]
    mutate(monkeypatch)
    assert error(case, build(CASES[case][0])) > 10 * TOLERANCE


WEIGHTS = {
    "the newline is another": ("one small picture", "newline"),
    "the positions are reversed": ("one small picture", "tower.position_embedding.weight"),
    "the class token is another": ("LLaVA-1.5", "tower.class_embedding"),
    "the first norm is another": ("LLaVA-1.5", "tower.pre_layernorm.bias"),
    "a bias of the projector is another": ("a video", "projector.linear_fc1.bias"),
}


@pytest.mark.parametrize("mutation", WEIGHTS)
def test_a_change_of_a_weight_is_noticed(mutation: str) -> None:
    case, name = WEIGHTS[mutation]
    gpt = build(CASES[case][0])
    with torch.no_grad():
        changed = gpt.pictures.get_parameter(name)
        changed.copy_(changed.flip(0))
    assert error(case, gpt) > 10 * TOLERANCE


def test_text_alone_is_the_language_model_and_gives_every_weight_a_gradient_of_zero() -> None:
    case = "text alone"
    given, gpt = batch(case), build(CASES[case][0])
    found = logits(gpt, given)
    torch.testing.assert_close(found, gpt(given.tokens, given.positions, None), rtol=0, atol=0)
    found.square().sum().backward()
    for name, parameter in gpt.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.any()) != name.startswith("pictures."), name


def test_a_frozen_vision_part_keeps_nothing_for_the_backward_pass() -> None:
    case = "LLaVA-1.5"  # one tile, so that the tower's layers begin with a view
    gpt, given = build(CASES[case][0]), batch(case)
    gpt.pictures.requires_grad_(False)
    assert not gpt.pictures(given.media).requires_grad
    logits(gpt, given).sum().backward()


def test_the_precision_of_the_language_model_holds_for_pictures() -> None:
    case = "a batch of pictures and a video"
    precise = {"params_dtype": torch.bfloat16, "bf16": True, "pipeline_dtype": torch.bfloat16}
    gpt, given = build(CASES[case][0], **precise), batch(case)
    assert {parameter.dtype for parameter in gpt.parameters()} == {torch.bfloat16}
    found = logits(gpt, given)
    assert found.dtype == torch.bfloat16
    assert difference(found.float(), expected_logits(case, given), given.kept) <= 0.03
    found.sum().backward()


def test_pictures_that_do_not_fit_the_text_are_an_error() -> None:
    case = "one picture of odd size"
    gpt, given = built(CASES[case][0]), batch(case)
    with pytest.raises(ValueError, match="15 placeholders for 14 embeddings of pictures"):
        logits(gpt, replace(given, tokens=torch.cat([given.tokens, torch.tensor([[IMAGE]])], 1)))
    fewer = Media(given.media.tiles[:-1], (replace(given.media.items[0], tiles=4),))
    with pytest.raises(ValueError, match="needs 2 x 2 tiles, and one of the whole picture"):
        logits(gpt, replace(given, media=fewer))
    video = Media(given.media.tiles, (Item("video", 30, 30, 5),))
    with pytest.raises(ValueError, match=r"cannot take .*video.*: it reads pictures of one tile each"):
        built("SigLIP without tiles, Qwen3").pictures(video)


@pytest.mark.parametrize("model", ["SigLIP, Qwen2", "CLIP, Llama"])
def test_names_of_the_vision_part(model: str) -> None:
    tower, layer = "pictures.tower.", "pictures.tower.decoder.layers.1."
    both = ("weight", "bias")
    expected = {
        f"{tower}patch_embedding.weight",
        f"{tower}position_embedding.weight",
        *(f"pictures.projector.linear_fc{number}.{kind}" for number in (1, 2) for kind in both),
        *(f"{layer}self_attention.linear_{name}.{kind}" for name in ("qkv", "proj") for kind in both),
        *(f"{layer}mlp.linear_fc{number}.{kind}" for number in (1, 2) for kind in both),
        *(f"{layer}{name}_layernorm.{kind}" for name in ("input", "pre_mlp") for kind in both),
    }
    if model.startswith("CLIP"):
        expected |= {f"{tower}pre_layernorm.{kind}" for kind in both} | {f"{tower}class_embedding"}
    else:
        expected |= {f"{tower}patch_embedding.bias", "pictures.newline"}
    gpt = built(model)
    names = {name for name, _ in gpt.named_parameters()}
    vision = {name for name in names if name.startswith("pictures.")}
    assert {name for name in vision if ".layers." not in name or ".layers.1." in name} == expected
    assert names <= gpt.sharded_state_dict().keys()
