"""Which tokens may follow in a picture: its form depends on the grid and the number of tokens alone."""

from __future__ import annotations

from flagscale.checks.emu3 import Grid
from flagscale.checks.emu3_vocabulary import Vocabulary

GRID = "image_grid"
"""The key in `SamplingParams.extra_args`: [height, width] of the picture in codes."""


def only_token(grid: Grid, vocabulary: Vocabulary, step: int) -> int | None:
    """Return the only token that may follow after `step` generated ones; None if it is any code.

    Each row of codes ends with a mark; then follow the ends of the frame, of the picture and of the text. The
    source is BAAI's processing_emu3.py (and v0.6.0's copy); transformers' documentation has the same.
    """
    at = step - grid.height * (grid.width + 1)
    if at < 0:
        return vocabulary.end_of_line if step % (grid.width + 1) == grid.width else None
    return (vocabulary.end_of_frame, vocabulary.end_of_image, vocabulary.end_of_text)[min(at, 2)]
