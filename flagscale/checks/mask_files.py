"""The files of loss masks beside a text: their names, and which trainings read them.

`<x>_text_document` holds token ids, `<x>_loss_mask_document` a number for each of them: not 0 if the model
learns to write this token. FlagScale v0.6.0 had the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagscale.checks.indexed import bin_path, idx_path

SEPARATE = "apply_sft_dataset_separated_loss_mask_if_existed"
"""The argument of v0.6.0 with which `train_gpt` reads such masks, if they exist."""
NO_PACKING = "no_packing"
"""An argument (by dest) that only programs of instruction tuning have: one conversation per sample."""
TEXT, MASKS = "_text_document", "_loss_mask_document"


def mask_prefix(prefix: Path) -> Path | None:
    """Return the prefix of the masks of a text; None if its name does not end with `TEXT`."""
    if not prefix.name.endswith(TEXT):
        return None
    return prefix.with_name(prefix.name.removesuffix(TEXT) + MASKS)


def has_masks(prefix: Path) -> bool:
    """Return whether a text has masks beside it; one file of the two is enough, which others report."""
    masks = mask_prefix(prefix)
    return masks is not None and (idx_path(masks).exists() or bin_path(masks).exists())


def masks_to_read(values: Mapping[str, Any], prefix: Path) -> Path | None:
    """Return the prefix of the masks that a training (arguments by dest) reads with a text, if any."""
    is_reading = NO_PACKING in values or values.get(SEPARATE)
    return mask_prefix(prefix) if is_reading and has_masks(prefix) else None
