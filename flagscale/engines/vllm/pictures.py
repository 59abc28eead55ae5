"""Rules of vLLM for models that read pictures, and how it reads them unlike a training with FlagScale."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.checks.model_folder import mapping_of, sees_pictures
from flagscale.checks.picture_folder import is_llava
from flagscale.errors import Violation, nearest

_LIMITS, _PROCESSOR, _FAST = "limit_mm_per_prompt", "mm_processor_kwargs", "use_fast"
_TILES, _SLACK = 9, 1.1
_KINDS = ("audio", "image", "video", "vision_chunk")


def limit_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield limits that vLLM 0.32 refuses, or ignores because it knows no such input."""
    for kind, limit in mapping_of(values.get(_LIMITS)).items():
        count = limit.get("count", 0) if isinstance(limit, Mapping) else limit
        if kind not in _KINDS:
            hint = nearest(str(kind), _KINDS) or f"known: {', '.join(_KINDS)}"
            yield _LIMITS, f"`{_LIMITS}` limits `{kind}`, which is no input of a model ({hint})"
        elif isinstance(count, int) and count < 0:
            yield _LIMITS, f"`{_LIMITS}` limits `{kind}` to {count}; it must be at least 0"


def tower_violations(values: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield why vLLM cannot compute the tower that a `config.json` describes, or divide it among ranks."""
    tower, ranks = config.get("vision_config"), values["tensor_parallel_size"]
    if not is_llava(config) or not isinstance(tower, Mapping):
        return
    heads, side, patch_size = (
        tower.get(name) for name in ("num_attention_heads", "image_size", "patch_size")
    )
    is_clip = tower.get("model_type") == "clip_vision_model"
    if is_clip and isinstance(side, int) and isinstance(patch_size, int) and side % patch_size:
        what = f"the tower's tiles of {side} pixels are no multiple of its patches of {patch_size}"
        yield "model", f"{what}, which vLLM needs of a CLIP tower"
    if isinstance(heads, int) and heads % ranks and values.get("mm_encoder_tp_mode") != "data":
        what = f"the vision tower's {heads} attention heads cannot be divided evenly by {ranks}"
        yield "tensor_parallel_size", f"{what}; with `mm_encoder_tp_mode: data` it need not be divided"


def picture_remarks(values: Mapping[str, Any], config: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield in what a server of this `config.json` would see pictures otherwise than the training did.

    transformers 5 has two processors, which enlarge and shrink a little differently. Training uses that of
    Pillow, and vLLM that of torchvision.
    """
    if not is_llava(config) or not sees_pictures(values):
        return
    yield from _shrunk_otherwise(config)
    if _FAST not in mapping_of(values.get(_PROCESSOR)):
        what = "vLLM scales pictures with torchvision: the pixels differ a little from those of the training"
        yield _PROCESSOR, f"{what} (Pillow's); `{_PROCESSOR}: {{{_FAST}: false}}` makes them equal"


def _shrunk_otherwise(config: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield that vLLM 0.32 shrinks large grids to the features of 9 tiles, whatever the configuration says.

    Grids with up to a tenth more features per side than the limit are not shrunk.
    """
    ratio, grids = str(config.get("vision_aspect_ratio", "")), config.get("image_grid_pinpoints")
    tower, limit = config.get("vision_config"), re.fullmatch(r"anyres_max_(\d+)", ratio)
    side = tower.get("image_size") if isinstance(tower, Mapping) else None
    if not limit or int(limit[1]) == _TILES or not isinstance(side, int) or not isinstance(grids, list):
        return
    tiles = max((height * width // side**2 for height, width in grids), default=0)
    if tiles > _SLACK**2 * min(int(limit[1]), _TILES):
        what = f"the model was trained with `{ratio}`, but vLLM always shrinks to about {_TILES} tiles"
        yield "model", f"{what}: large pictures get another number of tokens"
