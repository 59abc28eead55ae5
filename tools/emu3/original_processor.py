"""How BAAI's Emu3 prepares pictures and questions, as transformers' Emu3Processor.

Defaults are those of `image_processing_emu3visionvq.py` in BAAI's repository; transformers' own differ (mean
and standard deviation of CLIP).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flagscale.checks import emu3_vocabulary as names
from flagscale.checks.emu3 import FACTOR
from flagscale.errors import Problem, UserError, short
from megatron.flagscale.convert.files import read_json
from megatron.flagscale.convert.json_values import is_size

if TYPE_CHECKING:
    from transformers import Emu3Processor, PreTrainedTokenizerFast

PREPROCESSOR = "preprocessor_config.json"
_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_convert_rgb": True,
    "min_pixels": 512 * 512,
    "max_pixels": 1024 * 1024,
    "spatial_factor": FACTOR,
}
CHAT_TEMPLATE = names.CHAT_TEMPLATE.removeprefix("{{ bos_token }}")
"""transformers' processor puts BOS in front of every text, also of one that begins with it (5.19)."""


def read_settings(tower: Path) -> dict[str, Any]:
    """Return the settings of transformers' Emu3ImageProcessor from the folder of the vision tokenizer.

    Raises:
        UserError: the file is missing, or a value cannot be used; lists everything.
    """
    path = tower / PREPROCESSOR
    config = read_json(path)
    settings = {key: config.get(key, usual) for key, usual in _DEFAULTS.items()}
    problems = [
        Problem(f"`{key}` is {short(settings[key])}, not a positive whole number", str(path))
        for key in ("min_pixels", "max_pixels", "spatial_factor")
        if not is_size(settings[key])
    ]
    for key, usual in _DEFAULTS.items():
        if isinstance(usual, bool) and not isinstance(settings[key], bool):
            problems.append(Problem(f"`{key}` is {short(settings[key])}, not true or false", str(path)))
    factor = settings["spatial_factor"]
    if is_size(factor) and factor != FACTOR:
        what = f"`spatial_factor` is {factor}, but transformers' Emu3Processor has {FACTOR} pixels per code"
        problems.append(Problem(what, str(path)))
    if problems:
        raise UserError(problems)
    return settings


def converted(
    settings: Mapping[str, Any], image_area: int, tokenizer: PreTrainedTokenizerFast
) -> Emu3Processor:
    """Return the processor; pictures whose size is not given have `image_area` pixels, if possible."""
    from transformers import Emu3Processor
    from transformers.models.emu3.image_processing_emu3 import Emu3ImageProcessor

    pictures = Emu3ImageProcessor(**settings, image_area=image_area)
    return Emu3Processor(pictures, tokenizer, chat_template=CHAT_TEMPLATE)
