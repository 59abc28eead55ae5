"""The form of a picture: its rows of codes and its marks."""

from __future__ import annotations

import pytest

from flagscale.checks.emu3 import Grid
from flagscale.checks.emu3_vocabulary import Vocabulary
from vllm_flagscale.emu3.grammar import only_token

VOCABULARY = Vocabulary(100, 50, end_of_line=1, end_of_frame=2, end_of_image=3, end_of_text=4)


@pytest.mark.parametrize("grid", [Grid(2, 3), Grid(1, 1), Grid(1, 4), Grid(4, 1)])
def test_a_picture_is_rows_of_codes_and_three_marks(grid: Grid) -> None:
    tokens = [only_token(grid, VOCABULARY, step) for step in range(grid.tokens)]
    assert tokens == [*([None] * grid.width + [1]) * grid.height, 2, 3, 4]


def test_nothing_but_the_end_follows_a_picture() -> None:
    assert [only_token(Grid(1, 1), VOCABULARY, step) for step in (5, 6, 100)] == [4, 4, 4]
