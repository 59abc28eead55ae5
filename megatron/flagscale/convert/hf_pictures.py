"""Convert the description of a model with pictures to Hugging Face's `config.json`, and back.

The configurations of its language model and of its tower are nested in it. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from flagscale.errors import Problem, UserError, short
from flagscale.vision.arguments import FITS, FLAT, SIZES, UNPAD, arguments_of, vision_of
from flagscale.vision.tiling import Vision
from flagscale.vision.tower import TOWERS
from megatron.flagscale.convert import hf_config
from megatron.flagscale.convert.families.base import SIZE, Family
from megatron.flagscale.convert.families.llava import (
    FEATURES,
    LLAVA_ONEVISION,
    MODEL_TYPES,
    TOWER_PREFIX,
    form_in,
    form_of,
)
from megatron.flagscale.convert.families.registry import load as load_family
from megatron.flagscale.convert.families.towers import ENCODER, TABLES
from megatron.flagscale.convert.hf_defaults import class_defaults
from megatron.flagscale.convert.hf_keys import surplus_keys
from megatron.flagscale.convert.hf_rope import Report
from megatron.flagscale.convert.json_values import is_size, same
from megatron.flagscale.convert.model import Model

TEXT, TOWER = "text_config", "vision_config"
_DTYPES = ("dtype", "torch_dtype")


def read_config(config: Mapping[str, Any], where: str, family: str | None = None) -> Model:
    """Return the model that a `config.json` describes, with pictures or without.

    `family` is the family of the language model requested by the user, or None. The placeholders have their
    default names, because `config.json` has only their ids.

    Raises:
        UserError: as `hf_config.read_config`; reports everything that is wrong with all parts.
    """
    form = form_in(config)
    if form is None:
        return hf_config.read_config(config, where, family)
    problems: list[Problem] = []
    text = f"{where}: {TEXT}"
    model = _attempt(problems, lambda: hf_config.read_config(text_of(config, form), text, family))
    vision = _attempt(problems, lambda: _read_vision(config, form, where))
    if model is None or vision is None:
        raise UserError(problems)
    return replace(model, vision=vision)


def _attempt[T](problems: list[Problem], read: Callable[[], T]) -> T | None:
    """Return what `read` returns; None if it raises `UserError`, whose problems are added to `problems`."""
    try:
        return read()
    except UserError as error:
        problems += error.problems
        return None


def text_of(config: Mapping[str, Any], form: Family) -> dict[str, Any]:
    """Return the configuration of the language model in that of a model with pictures.

    Its precision is that of the whole, and it is tied if either says so, as in transformers 5.19.
    """
    text = config.get(TEXT)
    if not isinstance(text, dict):
        raise UserError([Problem(f"`{TEXT}` is {short(text)}, not an object")])
    given = {key: config[key] for key in _DTYPES if config.get(key) is not None}
    tied = {"tie_word_embeddings": True} if config.get("tie_word_embeddings") is True else {}
    kind = {} if text.get("architectures") else {"model_type": MODEL_TYPES[form.name][0]}
    return {**kind, **text, **given, **tied}


def _read_vision(config: Mapping[str, Any], form: Family, where: str) -> Vision:
    """Return the vision part, by the arguments of a training with the same meaning."""
    problems: list[Problem] = []

    def report(what: str, place: str = where) -> None:
        problems.append(Problem(what, place))

    values = {**form.class_defaults, **config}
    for name, expected in form.config.items():
        if not same(values.get(name, expected), expected):
            report(f"`{name}` is {short(values[name])}; only {expected!r} is supported")
    if config.get("model_type") not in (None, form.model_type):
        report(
            f"`model_type` is {short(config['model_type'])}, but {form.architecture} has {form.model_type!r}"
        )
    problems += surplus_keys(config, form, where)
    nested = config.get(TOWER)
    if not isinstance(nested, dict):
        report(f"`{TOWER}` is {short(nested)}, not an object")
        raise UserError(problems)
    arguments = tower_arguments(nested, f"{where}: {TOWER}", MODEL_TYPES[form.name][1], problems)
    kind = arguments["vision_model_type"]
    strategy = values.get("vision_feature_select_strategy")
    if strategy != FEATURES[kind]:
        what = f"`vision_feature_select_strategy` is {short(strategy)}; only {FEATURES[kind]!r} is supported"
        report(f"{what} with a tower of the kind {kind}")
    arguments["vision_num_layers"] = layers_read(
        values.get("vision_feature_layer"), arguments["vision_num_layers"], report
    )
    arguments |= {"image_aspect_ratio": FITS[0], "mm_patch_merge_type": FLAT, "image_grid_pinpoints": None}
    if form is LLAVA_ONEVISION:
        grids = values.get("image_grid_pinpoints") or arguments["image_grid_pinpoints"]
        arguments |= {
            "image_aspect_ratio": str(values["vision_aspect_ratio"]),
            "mm_patch_merge_type": UNPAD,
            "image_grid_pinpoints": _USUAL_GRIDS if grids is None else str(grids),
        }
    if problems:
        raise UserError(problems)
    try:
        return vision_of({**arguments_of(Vision(TOWERS[kind])), **arguments})
    except UserError as error:
        raise UserError(replace(one, where=where) for one in error.problems) from None


_USUAL_GRIDS = str([[384 * row, 384 * column] for row in range(1, 7) for column in range(1, 7)])
"""What transformers 5.19 takes for missing `image_grid_pinpoints`, whatever the side of a tile is."""


def tower_arguments(
    config: Mapping[str, Any], where: str, usual: str, problems: list[Problem]
) -> dict[str, Any]:
    """Return the arguments of a training (by dest) that a tower's configuration stands for.

    `usual` is its `model_type` if it has none. What is wrong is added to `problems`.
    """
    model_type = config.get("model_type", usual)
    table = next((one for one in TABLES.values() if one.model_type == model_type), None)
    if table is None:
        known = ", ".join(one.model_type for one in TABLES.values())
        raise UserError(
            [*problems, Problem(f"the tower {short(model_type)} is not supported; known: {known}", where)]
        )
    values = {**table.class_defaults, **config}
    arguments: dict[str, Any] = {"vision_model_type": table.name}
    for name, field in SIZES.items():
        key = table.keys[field]
        arguments[name] = values.get(key)
        if not is_size(values.get(key)):
            problems.append(Problem(f"`{key}` is {short(values.get(key))}, not {SIZE.text}", where))
            arguments[name] = 1
    for key, expected in table.config.items():
        if not same(values.get(key, expected), expected):
            what = f"`{key}` is {short(values[key])}; only {expected!r} is supported in a tower of the kind "
            problems.append(Problem(what + table.name, where))
    problems += surplus_keys(config, table, where)
    return arguments


def layers_read(layer: Any, layers: int, report: Report) -> int:
    """Return the number of a tower's `layers` that are computed if the output of `layer` is read.

    -1 is the last one; 0 is their input.
    """
    if isinstance(layer, list) and len(layer) == 1:
        layer = layer[0]
    if type(layer) is not int or not 0 < (count := layer + (layers + 1 if layer < 0 else 0)) <= layers:
        what = f"`vision_feature_layer` is {short(layer)}"
        report(f"{what}; only one layer is supported, from {-layers} to {layers} in this tower")
        return layers
    return count


def unread_layers(config: Mapping[str, Any], model: Model) -> list[str]:
    """Return what the names of those tower layers begin with that a model does not compute."""
    if model.vision is None:
        return []
    table = TABLES[model.vision.tower.kind]
    values = {**table.class_defaults, **config[TOWER]}
    stored = values[table.keys["layers"]]
    return [f"{TOWER_PREFIX}{ENCODER}{layer}." for layer in range(model.vision.tower.layers, stored)]


def write_config(model: Model, special: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `config.json`; `special` holds the ids of the tokenizer and of placeholders."""
    if model.vision is None:
        return hf_config.write_config(model, special)
    vision, form = model.vision, form_of(model.vision)
    if not class_defaults(load_family(model.family).model_type):
        what = (
            f"transformers has no class for the family {model.family}, so no model with pictures can hold it"
        )
        raise UserError([Problem(what, "--model", "name another family that fits, such as llama")])
    ids = {name: value for name, value in special.items() if name.endswith("_token_id")}
    table = TABLES[vision.tower.kind]
    sizes = {key: getattr(vision.tower, field) for field, key in table.keys.items()}
    tiling: dict[str, Any] = {}
    if vision.tiling:
        tiling["image_grid_pinpoints"] = [list(grid) for grid in vision.tiling.grids]
        tiling["vision_aspect_ratio"] = f"anyres_max_{vision.tiling.max_tiles}"
    else:
        tiling["image_seq_length"] = vision.tower.features
    return {
        "architectures": [form.architecture],
        "model_type": form.model_type,
        TEXT: hf_config.write_config(replace(model, vision=None), ids),
        TOWER: {"model_type": table.model_type, **sizes, **table.config, **table.written},
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": FEATURES[table.name],
        **form.config,
        **tiling,
        "tie_word_embeddings": model.tied,
        **dict.fromkeys(_DTYPES, model.dtype),
        **special,
    }
