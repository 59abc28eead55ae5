"""FlagScale v0.6.0's trainings on pictures and text: what their keys stood for, as today's arguments.

Its programs `train_llava.py` and `train_llava_onevision.py` required `language_model_type`, so that key shows
a file for them. They chose parts of the model by it, counted `seq_length` in their own ways, and took the
size of a tile from arguments of the engine. Names and rules: `flagscale/train/train_llava*.py` and
`flagscale/train/models/llava_onevision/config.py` of v0.6.0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flagscale.config.engine_args import FlatKey, Unknown
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem
from flagscale.vision.tower import TOWERS

KIND, CLASS_TOKEN, TRAIN_ONLY = "language_model_type", "disable_vision_class_token", "training_dataset_only"
_ONEVISION = "interleaved_dataset"
"""The key without which `train_llava_onevision.py` ended, and which `train_llava.py` did not have."""
_MERGE = "mm_patch_merge_type"
_QWEN: Mapping[str, Any] = {"add_qkv_bias": True, "disable_bias_linear": True, "swiglu": True}
"""What a `language_model_type` of Qwen stood for."""
_WITHOUT_EFFECT = {
    "split": "the folder's own splits count (.nv-meta/split.yaml)",
    "eod_mask_loss": "only answers have a loss, with the token that ends them",
    "apply_layernorm_1p": "v0.6.0 did not apply it to these models",
}
"""Arguments of the engine that do nothing in a training with pictures."""
_SIZES = {"img_h": 224, "img_w": 224, "patch_dim": 16}
"""The size of a tile and of its patches, with the engine's defaults."""


@dataclass
class _File:
    """The flat keys of one file, by name, and what is said about them."""

    keys: dict[str, FlatKey]
    source_map: SourceMap
    problems: list[Problem]
    notices: list[Problem]

    def value(self, name: str, default: Any = None) -> Any:
        return self.keys[name].value if name in self.keys else default

    def where(self, name: str) -> str:
        return self.source_map.where(self.keys[name if name in self.keys else KIND].path)

    def note(self, name: str, what: str) -> None:
        self.notices.append(Problem(what, self.where(name)))

    def refuse(self, name: str, what: str, hint: str = "") -> None:
        self.problems.append(Problem(what, self.where(name), hint))

    def put(self, name: str, value: Any, at: str) -> None:
        """Set a key; a new one is blamed on the key `at`."""
        old = self.keys.get(name) or replace(self.keys[at], name=name)
        self.keys[name] = replace(old, value=value)

    def drop(self, name: str, why: str) -> None:
        if name in self.keys:
            self.note(name, f"dropped because {why}")
            del self.keys[name]


def with_pictures(
    flat_keys: Sequence[FlatKey], source_map: SourceMap, problems: list[Problem], notices: list[Problem]
) -> list[FlatKey]:
    """Return the flat keys of a training with pictures as today's; those of others are left as they are."""
    file = _File({key.name: key for key in flat_keys}, source_map, problems, notices)
    _set_evaluation(file)
    if KIND in file.keys:
        _take_class_token(file)
        for name, why in _WITHOUT_EFFECT.items():
            file.drop(name, why)
        _set_model(file)
        _note_tiles(file)
        _set_length(file, _set_tower(file))
        del file.keys[KIND]
    return [*file.keys.values()]


def _set_model(file: _File) -> None:
    kind = file.value(KIND)
    if kind is Unknown.VALUE or not str(kind).startswith("qwen"):
        if kind is Unknown.VALUE:
            for name in _QWEN:
                file.put(name, Unknown.VALUE, KIND)
        else:
            file.note(KIND, "dropped because the other keys describe the language model")
        return
    changed = {name: value for name, value in _QWEN.items() if file.value(name) is not value}
    for name, value in changed.items():
        file.put(name, value, KIND)
    shown = ", ".join(f"`{name}: true`" for name in changed)
    file.note(KIND, f"is now {shown}" if changed else "dropped because the other keys describe it")


def _note_tiles(file: _File) -> None:
    """Say that pictures are no longer tiled when the data is made, if the keys ask for no tiles."""
    asked = [file.value(_MERGE, "flat"), file.value("image_aspect_ratio", "square")]
    if _ONEVISION in file.keys and asked == ["flat", "square"]:
        what = "each picture is now one tile; v0.6.0 took the tiles that were in the data. For tiles, set"
        file.note(_MERGE, f"{what} image_aspect_ratio: anyres_max_9 and {_MERGE}: spatial_unpad")


def _take_class_token(file: _File) -> None:
    given = file.value(CLASS_TOKEN)
    if given not in (True, Unknown.VALUE):
        what = f"`{CLASS_TOKEN}` must be true: the tower's class token is not passed to the language model"
        file.refuse(CLASS_TOKEN, what, "train the projector again with it")
    elif given is True:
        file.note(CLASS_TOKEN, "dropped because the class token is never passed to the language model")
    file.keys.pop(CLASS_TOKEN, None)


def _set_tower(file: _File) -> int | None:
    """Replace the engine's sizes with the tower's; return the features of a tile, None if unknown."""
    given = [name for name in _SIZES if name in file.keys]
    height, width, patch = (file.value(name, default) for name, default in _SIZES.items())
    tower = TOWERS.get(str(file.value("vision_model_type", "clip")))
    is_known = all(type(size) is int and size > 0 for size in (height, width, patch))
    if is_known and height != width:
        file.refuse("img_h", f"`img_h: {height}` and `img_w: {width}` differ: a tile is a square")
    elif is_known and tower is not None:
        new = {
            name: size
            for name, size, own in (
                ("vision_image_size", height, tower.side),
                ("vision_patch_size", patch, tower.patch_size),
            )
            if size != own
        }
        at = given[0] if given else KIND
        for name, size in new.items():
            file.put(name, size, at)
        if new:
            shown = ", ".join(f"`{name}: {size}`" for name, size in new.items())
            default = "" if given else "the size of a tile, which had a default of the engine, "
            file.note(at, f"{default}is now {shown}")
        for name in () if new else given:
            file.note(name, "dropped because it is the tower's own size")
    elif not is_known:
        for name in given:
            size = file.value(name)
            if size is not Unknown.VALUE and not (type(size) is int and size > 0):
                file.refuse(name, f"`{name}: {size}` is not a positive whole number")
        for name in ("vision_image_size", "vision_patch_size"):
            file.put(name, Unknown.VALUE, given[0])
    for name in given:
        del file.keys[name]
    return (height // patch) * (width // patch) if is_known else None


def _set_length(file: _File, tokens: int | None) -> None:
    """Have `seq_length` count pictures too, as today; v0.6.0's programs did not, each in its own way."""
    text, positions = file.value("seq_length"), file.value("max_position_embeddings")
    if not isinstance(text, int) or not isinstance(positions, int):
        return  # missing or wrong, which is reported later
    if _ONEVISION in file.keys:
        if text != positions:
            file.put("seq_length", positions, KIND)
            file.note("seq_length", f"is now {positions}: v0.6.0 took max_position_embeddings instead")
        return
    if tokens is None:
        file.put("seq_length", Unknown.VALUE, KIND)
        return
    total = text + tokens
    file.put("seq_length", total, KIND)
    file.note("seq_length", f"is now {total}, which includes the {tokens} tokens of a picture")
    if total > positions:
        file.put("max_position_embeddings", total, KIND)
        file.note("max_position_embeddings", f"is now {total}, as v0.6.0 expanded it")


def _set_evaluation(file: _File) -> None:
    if TRAIN_ONLY not in file.keys:
        return
    given = file.value(TRAIN_ONLY)
    if given is True and file.value("eval_iters") != 0:
        file.put("eval_iters", 0, TRAIN_ONLY)
        file.note(TRAIN_ONLY, "is now `eval_iters: 0`")
    elif given is Unknown.VALUE:
        file.put("eval_iters", Unknown.VALUE, TRAIN_ONLY)
    else:
        file.note(
            TRAIN_ONLY, "dropped because eval_iters is 0" if given else "dropped because it has no effect"
        )
    del file.keys[TRAIN_ONLY]
