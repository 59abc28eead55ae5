"""Which tokens of a conversation a model learns: those that share a character with an answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def answer_tokens(offsets: Sequence[tuple[int, int]], answers: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return bool `[tokens]`: which tokens share a character with an answer; never the first.

    Llama's tokenizers join a space with the word after it, also the last of a prompt with an answer. The
    first token of a conversation has none before it that could predict it.

    Args:
        offsets: the first and the end character of each token, in order.
        answers: the first and the end character of each answer, in order and apart.
    """
    edges = np.asarray(answers, np.int64).reshape(-1)
    first, end = filled(offsets).T
    inside: np.ndarray = np.searchsorted(edges, np.stack([first, np.maximum(end - 1, first)]), "right") % 2
    learnt: np.ndarray = inside.max(0) == 1
    learnt[:1] = False
    return learnt


def filled(offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return int64 `[tokens, 2]`: the offsets, with the characters between two tokens as part of the second.

    With `trim_offsets` (RoBERTa's, for example), the offsets of a token leave out its blanks, so that a token
    of blanks alone would stand at the first character of the next one.
    """
    whole = np.asarray(offsets, np.int64).reshape(-1, 2).copy()
    if len(whole):
        ends = np.maximum.accumulate(whole[:, 1])
        whole[1:, 0] = np.minimum(whole[1:, 0], ends[:-1])
    return whole
