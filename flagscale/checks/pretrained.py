"""The Hugging Face folder that a training may start from, and the rules between it and other arguments.

It is converted once, into `converted_dir`, before the ranks load it: the training starts from the result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.checks.lora import PRETRAINED
from flagscale.errors import Violation

CONVERTED = "converted_dir"
CONFIG = "config.json"
"""The description of a model in Hugging Face's format."""
_REFUSED = {
    "finetune_with_optim": "it holds no state of an optimizer",
    "moe_use_upcycling": "`tools/checkpoint/convert.py --experts` makes its experts",
}


def is_huggingface(folder: str | Path) -> bool:
    """Return whether a folder holds a model in Hugging Face's format."""
    return os.path.isfile(Path(folder) / CONFIG)


def pretrained_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield every rule for Hugging Face folders that the arguments (by dest) break."""
    load, folder = values.get("load"), values.get(PRETRAINED)
    if load and is_huggingface(load):
        what = f"`load` is a Hugging Face folder, {load}, which holds no checkpoint to continue"
        yield "load", f"{what}; name it as `{PRETRAINED}`"
    if not folder:
        if values.get(CONVERTED):
            yield CONVERTED, f"`{CONVERTED}` has no effect without `{PRETRAINED}`; remove it"
        return
    if not is_huggingface(folder):
        return
    is_one = f"`{PRETRAINED}` is a Hugging Face folder"
    if not values.get(CONVERTED):
        yield CONVERTED, f"{is_one}: `{CONVERTED}` must name the folder in which its conversion is kept"
    kind = values.get("ckpt_format")
    if kind not in (None, "torch_dist"):
        what = f"{is_one}, which is converted to a checkpoint in the format torch_dist"
        yield "ckpt_format", f"{what}: set `ckpt_format: torch_dist`, not {kind}"
    for name, why in _REFUSED.items():
        if values.get(name):
            yield name, f"`{name}` cannot be combined with a Hugging Face folder as `{PRETRAINED}`: {why}"
