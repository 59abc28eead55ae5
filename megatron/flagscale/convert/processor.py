"""The files beside a model with pictures that prepare its input: placeholders, tiles, conversations.

A folder says in `processor_config.json` (transformers 5) or `preprocessor_config.json` (transformers 4) how a
picture becomes tiles. Either is read, and both are written.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from flagscale.errors import Problem, UserError, short
from flagscale.files import write_atomic
from flagscale.vision.arguments import FITS
from flagscale.vision.tiling import Vision
from megatron.flagscale.chat.conversation import ChatTemplate
from megatron.flagscale.chat.templates import own_template, template_of
from megatron.flagscale.convert.families.llava import FEATURES
from megatron.flagscale.convert.files import read_json
from megatron.flagscale.convert.tokenizer import Tokenizer, with_end

_WHOLE, _PICTURES = "processor_config.json", "preprocessor_config.json"
_SQUARE, _PAD = FITS
_IDS = {
    "image_token": ("image_token_index", "image_token_id"),
    "video_token": ("video_token_index", "video_token_id"),
}
"""Field of `Vision` -> key of `config.json`, and another name of this key."""
_NONE = -1
"""The id of a token that the tokenizer does not have."""
_LLAVA = "LlavaImageProcessor"
_BICUBIC = 3
_HARMLESS = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "_valid_processor_keys"),
    *("data_format", "input_data_format", "return_tensors", "device", "disable_grouping"),
    "default_to_square",  # how a size that is one number was meant; both sides of it are compared
}
"""Keys of an image processor that change no pixel."""


def placeholder_ids(vision: Vision, tokenizer: Tokenizer) -> dict[str, int]:
    """Return the ids of the placeholders, by their keys in `config.json`.

    Raises:
        UserError: there is no tokenizer, or it has no token for a picture.
    """
    if tokenizer.folder is None:
        what = "a model with pictures is converted with its tokenizer, which has their placeholders"
        raise UserError([Problem(what, hint="add --tokenizer FOLDER")])
    ids = [tokenizer.vocab.get(token, _NONE) for token in placeholders(vision)]
    if ids[0] == _NONE:
        what = f"the tokenizer has no token {vision.image_token!r}, which stands for a picture"
        raise UserError([Problem(what, str(tokenizer.folder), "name one that has it with --tokenizer")])
    return {keys[0]: number for keys, number in zip(_IDS.values(), ids, strict=False)}


def placeholders(vision: Vision) -> tuple[str, ...]:
    """Return the tokens that stand for pictures and, with tiling, for videos."""
    return (vision.image_token, *((vision.video_token,) if vision.tiling else ()))


def vision_beside(vision: Vision, folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> Vision:
    """Return the vision part of a Hugging Face folder, with what its `config.json` does not say.

    Raises:
        UserError: the id of the placeholder is not a token, or the folder prepares pictures in another way.
    """
    names = {number: name for name, number in tokenizer.vocab.items()}
    found = {}
    for field, keys in _IDS.items():
        number = next((config[key] for key in keys if config.get(key) is not None), None)
        if number in names:
            found[field] = names[number]
        elif field == "image_token" and names:
            what = f"`{keys[0]}` is {short(number)}, which is not a token of {tokenizer.folder}"
            raise UserError([Problem(what, str(folder / "config.json"))])
    vision = replace(
        vision,
        image_token=found.get("image_token", vision.image_token),
        video_token=found.get("video_token", vision.video_token),
    )
    path, given = _stored(folder)
    if given.get("do_pad") is True and _kind_of(given) == _LLAVA:
        vision = replace(vision, fit=_PAD)
    if problems := [Problem(what, str(path)) for what in _differences(given, vision)]:
        raise UserError(problems)
    return vision


def _stored(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """Return what a folder says about pictures, and in which file; nothing if it has no such file."""
    for name in (_WHOLE, _PICTURES):
        if (folder / name).is_file():
            found = read_json(folder / name)
            given = found.get("image_processor") if name == _WHOLE else found
            if isinstance(given, dict):
                return folder / name, given
    return folder, {}


def _kind_of(given: Mapping[str, Any]) -> str:
    return str(given.get("image_processor_type") or "").removesuffix("Fast").removesuffix("Pil")


def _differences(given: Mapping[str, Any], vision: Vision) -> Iterator[str]:
    expected, kind = image_processor(vision), _kind_of(given)
    known = expected.pop("image_processor_type")
    # LLaVA's own does what CLIP's does, unless it pads.
    if kind not in ("", known, *(() if vision.tiling else (_LLAVA,))):
        yield f"`image_processor_type` is {short(kind)}; only {known!r} is supported in this model"
        return
    for key, value in expected.items():
        found = given.get(key)
        if isinstance(value, dict) and isinstance(found, int):
            found = dict.fromkeys(value, found)  # as older versions wrote it
        if found is not None and found != value:
            yield f"`{key}` is {short(given[key])}; only {short(value)} is supported in this model"
    for key in sorted(given.keys() - expected.keys() - _HARMLESS):
        if given[key] not in (None, False):
            yield f"`{key}` is {short(given[key])}, which is not understood and may change the pixels"


def image_processor(vision: Vision) -> dict[str, Any]:
    """Return how transformers turns a picture into the tiles of a vision part."""
    tower = vision.tower
    steps = ("do_convert_rgb", "do_resize", "do_rescale", "do_normalize")
    square, shortest = {"height": tower.side, "width": tower.side}, {"shortest_edge": tower.side}
    common = {
        **dict.fromkeys(steps, True),
        "image_mean": [*tower.mean],
        "image_std": [*tower.std],
        "resample": _BICUBIC,
        "rescale_factor": 1 / 255,
    }
    cut = {"size": shortest, "do_center_crop": True, "crop_size": square}
    if vision.tiling:
        grids = [[*grid] for grid in vision.tiling.grids]
        own = {"size": square, "do_pad": True, "image_grid_pinpoints": grids}
        return {"image_processor_type": "LlavaOnevisionImageProcessor", **common, **own}
    if vision.fit == _PAD:
        return {"image_processor_type": _LLAVA, **common, **cut, "do_pad": True}
    if tower.kind == "siglip":
        return {"image_processor_type": "SiglipImageProcessor", **common, "size": square}
    return {"image_processor_type": "CLIPImageProcessor", **common, **cut}


def write_processor(folder: Path, vision: Vision) -> None:
    """Write how pictures become tiles, and how many times each placeholder is repeated."""
    pictures = image_processor(vision)
    class_tokens = int(vision.tower.has_class_token)
    whole: dict[str, Any] = {
        "image_token": vision.image_token,
        "vision_feature_select_strategy": FEATURES[vision.tower.kind],
        "image_processor": pictures,
    }
    if vision.tiling:
        left_out = ("image_processor_type", "image_grid_pinpoints", "do_pad")
        frames = {name: value for name, value in pictures.items() if name not in left_out}
        whole |= {
            "processor_class": "LlavaOnevisionProcessor",
            "num_image_tokens": vision.tower.features + class_tokens,
            "video_token": vision.video_token,
            "vision_aspect_ratio": f"anyres_max_{vision.tiling.max_tiles}",
            "video_processor": {
                "video_processor_type": "LlavaOnevisionVideoProcessor",
                **frames,
                "do_sample_frames": False,
            },
        }
    else:
        whole |= {
            "processor_class": "LlavaProcessor",
            "patch_size": vision.tower.patch_size,
            "num_additional_image_tokens": class_tokens,
        }
    beside = {**pictures, "processor_class": whole["processor_class"]}
    for name, content in ((_WHOLE, whole), (_PICTURES, beside)):
        write_atomic(folder / name, json.dumps(content, indent=2) + "\n")


def laid_out_singly(vision: Vision | None) -> str:
    """Return a notice if a model has learnt several pictures in a sample as single tiles; "" if not."""
    if not vision or not vision.tiling or vision.tiling.tiles_several:
        return ""
    what = (
        "the model has learnt several pictures of a sample as a single tile each (`several_images: single`)"
    )
    return f"{what}: transformers lays them out so in a nested list of pictures, but vLLM tiles each of them"


def as_trained(vision: Vision, tokenizer: Tokenizer, trained: str | None, ends: bool) -> Tokenizer:
    """Return a tokenizer with the template of the conversations that a model was trained on, if it has one.

    `trained` is the training's `chat_template`. With `ends`, the token that ends its answers also ends
    generated text: it need not be the tokenizer's own, as `<|im_end|>` with the tokenizer of a base model.

    Raises:
        UserError: the template cannot be used.
    """
    from transformers import AutoTokenizer

    opened = AutoTokenizer.from_pretrained(tokenizer.folder, local_files_only=True, trust_remote_code=False)
    if not trained and not own_template(opened):
        return replace(tokenizer, chat_template="")
    template = template_of(opened, trained, vision.image_token, vision.video_token)
    companion = replace(tokenizer, chat_template=template)
    return with_end(companion, ChatTemplate(template, opened).end_token()) if ends else companion
