"""LLaVA and LLaVA-OneVision: a language model of another family, a vision tower, and a projector.

A model with pictures (`Model.vision`) keeps the family of its language model, as its checkpoint is that of a
GPT model with one more part. In Hugging Face's format, the language model and the tower are nested: their
tensors have a prefix, and their configurations are `text_config` and `vision_config`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from flagscale.vision.tiling import Vision
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.families.base import Family, Row
from megatron.flagscale.convert.families.towers import CLIP, EXTENTS, POST_NORM, SIGLIP, TABLES
from megatron.flagscale.convert.model import Model

LANGUAGE_PREFIX, TOWER_PREFIX = "language_model.", "vision_tower."
"""What the names of nested tensors begin with."""
FEATURES = {"clip": "default", "siglip": "full"}
"""Kind of tower -> `vision_feature_select_strategy`: without the feature of the class token, or all."""


def _linear(number: int, shape: str) -> tuple[Row, ...]:
    extents = tuple(shape.split())
    own, huggingface = f"pictures.projector.linear_fc{number}", f"multi_modal_projector.linear_{number}"
    return tuple(
        Row(f"{own}.{kind}", (f"{huggingface}.{kind}",), of)
        for kind, of in (("weight", extents), ("bias", extents[:1]))
    )


_PROJECTOR = (*_linear(1, "hidden tower"), *_linear(2, "hidden hidden"))
_KEYS = ("text_config", "vision_config", "vision_feature_layer", "vision_feature_select_strategy")
_CONFIG = {"projector_hidden_act": "gelu", "multimodal_projector_bias": True}
_HARMLESS = (
    *("ignore_index", "vocab_size", "hidden_size", "use_image_newline_parameter"),
    # read as the ids of tokens
    *("image_token_index", "image_token_id", "video_token_index", "video_token_id"),
)
LLAVA = Family(
    name="llava",
    architecture="LlavaForConditionalGeneration",
    model_type="llava",
    rows=_PROJECTOR,
    keys={name: name for name in _KEYS},
    config=_CONFIG,
    harmless=(*_HARMLESS, "image_seq_length"),
)
LLAVA_ONEVISION = replace(
    LLAVA,
    name="llava_onevision",
    architecture="LlavaOnevisionForConditionalGeneration",
    model_type="llava_onevision",
    rows=(*_PROJECTOR, Row("pictures.newline", ("image_newline",), ("hidden",))),
    keys={name: name for name in (*_KEYS, "image_grid_pinpoints", "vision_aspect_ratio")},
    harmless=_HARMLESS,
)
FORMS = (LLAVA, LLAVA_ONEVISION)
"""The forms of a model with pictures: without and with tiling."""
MODEL_TYPES: Mapping[str, tuple[str, str]] = {
    LLAVA.name: ("llama", CLIP.model_type),
    LLAVA_ONEVISION.name: ("qwen2", SIGLIP.model_type),
}
"""The `model_type` of the language model and of the tower if a form's configuration does not name it."""


def form_of(vision: Vision) -> Family:
    """Return the form in which a vision part is written."""
    return LLAVA if vision.tiling is None else LLAVA_ONEVISION


def class_of(model: Model) -> str:
    """Return the class of transformers that computes a model."""
    return form_of(model.vision).architecture if model.vision else registry.load(model.family).class_name


def rows_of(model: Model) -> tuple[Row, ...]:
    """Return the rows of a model: those of its family and, nested beside them, those of its vision part."""
    rows = registry.load(model.family).rows
    if not model.vision:
        return rows
    tower = TABLES[model.vision.tower.kind].rows
    return (*_nested(rows, LANGUAGE_PREFIX), *_nested(tower, TOWER_PREFIX), *form_of(model.vision).rows)


def _nested(rows: tuple[Row, ...], prefix: str) -> Iterator[Row]:
    for row in rows:
        names, copies = (tuple(prefix + name for name in names) for names in (row.huggingface, row.copies))
        yield replace(row, huggingface=names, copies=copies)


def sizes_of(model: Model) -> dict[str, int]:
    """Return the extents of a model, by the names that shapes use."""
    own = {name: extent(model) for name, extent in EXTENTS.items()} if model.vision else {}
    return {**registry.load(model.family).sizes(model), **own}


def fillings(model: Model) -> Mapping[str, float]:
    """Return the tensors, as wide as the tower, that take no part in a model but belong to its folder.

    Each is written as one number.
    """
    return {TOWER_PREFIX + name: value for name, value in POST_NORM.items()} if model.vision else {}


def ignored(model: Model) -> tuple[str, ...]:
    """Return the endings of the names of stored tensors that take no part in a model."""
    tower = TABLES[model.vision.tower.kind].buffers if model.vision else ()
    return (*registry.load(model.family).buffers, *tower)


_OTHER_NAMES = {
    "model.language_model.": f"{LANGUAGE_PREFIX}model.",
    "model.vision_tower.": TOWER_PREFIX,
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.image_newline": "image_newline",
    "lm_head.": f"{LANGUAGE_PREFIX}lm_head.",
}
"""What names begin with in transformers since 4.52, and in the files of all versions and of vLLM."""


def usual_name(name: str) -> str:
    """Return the name of a stored tensor in the form that transformers and vLLM both read.

    transformers 5 saves towers without `vision_model.`, which vLLM 0.32 does not read.
    """
    for other, usual in _OTHER_NAMES.items():
        if name.startswith(other):
            name = usual + name.removeprefix(other)
            break
    if name.startswith(TOWER_PREFIX) and not name.startswith(f"{TOWER_PREFIX}vision_model."):
        name = f"{TOWER_PREFIX}vision_model.{name.removeprefix(TOWER_PREFIX)}"
    return name


def form_in(config: Mapping[str, Any]) -> Family | None:
    """Return the form that a `config.json` names; None if it is not one of a model with pictures."""
    named = config.get("architectures") or [config.get("model_type")]
    if not isinstance(named, list):
        return None
    return next((form for form in FORMS if named[0] in (form.architecture, form.model_type)), None)
