"""A vision tower in a Hugging Face folder of its own: CLIP's or SigLIP's, alone or with its text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flagscale.checks.stored_tensors import Stored
from flagscale.checks.weight_files import weights_of
from flagscale.errors import Problem, UserError, short
from flagscale.formats import option_of
from flagscale.vision.arguments import FITS, FLAT, UNPAD, arguments_of, vision_of
from flagscale.vision.tiling import Vision
from flagscale.vision.tower import TOWERS
from megatron.flagscale.convert.families.llava import TOWER_PREFIX
from megatron.flagscale.convert.families.towers import TABLES
from megatron.flagscale.convert.files import read_json
from megatron.flagscale.convert.hf_pictures import TOWER, layers_read, tower_arguments
from megatron.flagscale.convert.huggingface import CONFIG, NAMES, read_tensor
from megatron.flagscale.convert.tensors import Entry

_MODEL = "vision_model."
"""What names begin with, unless transformers 5 has saved a tower alone."""


@dataclass(frozen=True)
class Wanted:
    """What to make of a tower: which of its layers is read, and how pictures become tiles.

    `layer` is counted from the end if it is negative; LLaVA and LLaVA-OneVision read the last but one.
    `aspect_ratio` and `pinpoints` are a training's `image_aspect_ratio` and `image_grid_pinpoints`.
    """

    folder: Path
    layer: int = -2
    aspect_ratio: str = FITS[0]
    pinpoints: str | None = None


class TowerFolder:
    """A tower, and the vision part that it is wanted for.

    Raises:
        UserError: the folder holds no tower that can be computed, or its tensors are missing or misshapen.
    """

    def __init__(self, wanted: Wanted) -> None:
        self.folder = wanted.folder
        config = read_json(self.folder / CONFIG)
        nested = config.get(TOWER, config)
        where = f"{self.folder / CONFIG}{f': {TOWER}' if nested is not config else ''}"
        if not isinstance(nested, dict):
            raise UserError(
                [Problem(f"`{TOWER}` is {short(nested)}, not an object", str(self.folder / CONFIG))]
            )
        problems: list[Problem] = []
        arguments = tower_arguments(nested, where, str(nested.get("model_type")), problems)

        def report(what: str) -> None:
            problems.append(Problem(what.replace("`vision_feature_layer` is", "--tower-layer"), where))

        arguments["vision_num_layers"] = layers_read(wanted.layer, arguments["vision_num_layers"], report)
        if problems:
            raise UserError(problems)
        self.vision = _vision(arguments, wanted)
        self._names, self._stored = _stored(self.folder, config)

    def check(self, wanted: list[Entry]) -> None:
        """Raise `UserError` if the tensors of these entries are not stored, or not in the expected form."""
        problems = []
        for entry in wanted:
            for name, shape in zip(map(_own, entry.huggingface), entry.parts, strict=True):
                found = self._stored.get(name)
                if found is None:
                    problems.append(f"the tensor {name} is missing")
                elif found.shape != shape or found.dtype not in NAMES:
                    what = f"{name} is stored as {found.dtype} {list(found.shape)}"
                    problems.append(f"{what}, but {CONFIG} gives {list(shape)} in {' or '.join(NAMES)}")
        if problems:
            more = [f"{len(problems) - 3} more tensors differ"] if len(problems) > 3 else []
            raise UserError(Problem(what, str(self.folder)) for what in (*problems[:3], *more))

    def dtype(self, entry: Entry) -> torch.dtype:
        """Return the precision of a tensor as stored."""
        return NAMES[self._stored[_own(entry.huggingface[0])].dtype]

    def parts(self, entry: Entry) -> list[torch.Tensor]:
        """Return the tensors from which that of an entry is joined."""
        names = map(_own, entry.huggingface)
        return [read_tensor(self._stored[name].file, self._names[name]) for name in names]


def _own(name: str) -> str:
    return name.removeprefix(TOWER_PREFIX)


def _stored(folder: Path, config: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Stored]]:
    """Return the stored name of each tensor, and the tensor, by its usual name."""
    stored, problems = weights_of(folder, config)
    if not stored and not problems:
        kinds = " or ".join(table.architecture for table in TABLES.values())
        again = f'transformers.{kinds}.from_pretrained(FOLDER, dtype="auto").save_pretrained(OTHER_FOLDER)'
        raise UserError(
            [Problem("its weights are not in safetensors", str(folder), f"save it again: {again}")]
        )
    if problems:
        raise UserError(Problem(what) for what in problems)
    has_prefix = any(name.startswith(_MODEL) for name in stored)
    names = {name if has_prefix else _MODEL + name: name for name in stored}
    return names, {usual: stored[name] for usual, name in names.items()}


def _vision(arguments: Mapping[str, Any], wanted: Wanted) -> Vision:
    is_tiled = wanted.aspect_ratio not in FITS
    tiling = {
        "image_aspect_ratio": wanted.aspect_ratio,
        "mm_patch_merge_type": UNPAD if is_tiled else FLAT,
        "image_grid_pinpoints": wanted.pinpoints,
    }
    usual = arguments_of(Vision(TOWERS[arguments["vision_model_type"]]))
    try:
        return vision_of({**usual, **arguments, **tiling})
    except UserError as error:
        options = {name: option_of(name) for name in tiling}
        found = [Problem(one.what, options.get(one.where, one.where), one.hint) for one in error.problems]
        raise UserError(found) from None
