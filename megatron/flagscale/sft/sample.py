"""One sample: whole conversations side by side, filled up with padding."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

Conversation = tuple[NDArray[np.integer], NDArray[np.integer]]
"""Token ids, and as many masks: not 0 if the model learns to write the token."""


def sample_of(conversations: Iterable[Conversation], length: int) -> dict[str, torch.Tensor]:
    """Return `tokens`, `labels`, `position_ids` (int64) and `loss_mask` (float32), each `[length]`.

    Positions begin at 0 in each conversation, and in the padding, which follows all of them. The label of a
    token is the next one of the same conversation; the last one has none, so its `loss_mask` is 0, as that of
    padding. `padding` is the number of tokens of padding.
    """
    tokens, labels, positions = (np.zeros(length, dtype=np.int64) for _ in range(3))
    mask = np.zeros(length, dtype=np.float32)
    begin = 0
    for ids, learnt in conversations:
        end = begin + len(ids)
        tokens[begin:end] = ids
        labels[begin : end - 1] = ids[1:]
        mask[begin : end - 1] = learnt[1:] != 0
        positions[begin:end] = np.arange(len(ids))
        begin = end
    positions[begin:] = np.arange(length - begin)
    arrays = {"tokens": tokens, "labels": labels, "loss_mask": mask, "position_ids": positions}
    return {name: torch.from_numpy(array) for name, array in arrays.items()} | {
        "padding": torch.tensor(length - begin)
    }


def lengths_of(position_ids: torch.Tensor, padding: torch.Tensor) -> list[int]:
    """Return the lengths of the conversations of a micro-batch: positions `[b, s]` and padding `[b]`."""
    found: list[int] = []
    for positions, unused in zip(position_ids, padding.tolist(), strict=True):
        used = len(positions) - unused
        starts = (positions[:used] == 0).nonzero().flatten().tolist()
        found += [end - start for start, end in zip(starts, [*starts[1:], used], strict=True)]
    return found
