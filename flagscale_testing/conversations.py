"""Random conversations as pairs of tokens and loss masks."""

from __future__ import annotations

import random
import struct
from collections.abc import Sequence
from pathlib import Path

from flagscale.checks.mask_files import MASKS, TEXT
from flagscale_testing.pairs import write_pair

Conversation = tuple[list[int], list[int]]
"""Token ids, and their masks."""
LENGTH = 64
_IDS = 3, 249


def drawn(count: int, seed: int = 1, longest: int = LENGTH) -> list[Conversation]:
    """Return random conversations of a question and an answer, sometimes of two."""
    found: list[Conversation] = []
    draw = random.Random(seed)
    for _ in range(count):
        masks: list[int] = []
        while not masks or (draw.random() < 0.3 and len(masks) < longest // 2):
            masks += [0] * draw.randint(1, longest // 8) + [1] * draw.randint(1, longest // 6)
        found.append(([draw.randint(*_IDS) for _ in masks], masks))
    return found


def write_conversations(name: Path, conversations: Sequence[Conversation]) -> str:
    """Write `<name>_text_document` and `<name>_loss_mask_document`; return the prefix of the text."""
    lengths = [len(ids) for ids, _ in conversations]
    name.parent.mkdir(parents=True, exist_ok=True)
    texts = [token for ids, _ in conversations for token in ids]
    prefix = name.with_name(name.name + TEXT)
    write_pair(prefix, lengths, struct.pack(f"<{len(texts)}H", *texts))
    masks = bytes(mask for _, own in conversations for mask in own)
    write_pair(name.with_name(name.name + MASKS), lengths, masks, code=1, itemsize=1)
    return str(prefix)
