"""The tokens of answers: those that share a character with one, whatever offsets the tokenizer gives."""

from __future__ import annotations

import pytest

from megatron.flagscale.chat.tokens import answer_tokens

Spans = list[tuple[int, int]]


@pytest.mark.parametrize(
    ("offsets", "answers", "learnt"),
    [
        ([(0, 2), (2, 4), (4, 6)], [(2, 4)], [0, 1, 0]),
        ([(0, 2), (2, 5), (5, 6)], [(3, 5)], [0, 1, 0]),  # a token that begins in the prompt
        ([(0, 2), (2, 3), (2, 3), (3, 4)], [(2, 3)], [0, 1, 1, 0]),  # two tokens of one character
        ([(0, 2), (2, 3), (3, 4), (4, 5)], [(2, 3), (4, 5)], [0, 1, 0, 1]),
        ([(0, 2), (2, 4)], [(2, 2)], [0, 0]),  # an empty answer
        ([(0, 2), (2, 4)], [(0, 4)], [0, 1]),  # nothing predicts the first token
        ([(0, 2), (4, 4), (4, 5)], [(4, 5)], [0, 0, 1]),  # blanks that `trim_offsets` left out: 2 to 4
        ([(0, 2), (3, 5), (5, 5), (6, 7)], [(3, 6)], [0, 1, 1, 1]),
        ([], [], []),
    ],
)
def test_tokens_that_share_a_character_with_an_answer(
    offsets: Spans, answers: Spans, learnt: list[int]
) -> None:
    assert answer_tokens(offsets, answers).astype(int).tolist() == learnt
