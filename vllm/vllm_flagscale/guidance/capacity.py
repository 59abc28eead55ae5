"""How many tokens a guided request may generate, and which requests have no room at all.

The two rows of a guided request run side by side: both need a place in the batch, memory for their keys and
values, and positions up to the end of the answer.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Capacity:
    """What one engine has room for."""

    max_model_len: int
    max_num_seqs: int
    blocks: int
    """Blocks of the KV cache that one request may occupy."""
    block_sizes: tuple[int, ...]
    """Tokens per block, for each group of layers that share blocks; most models have one group."""

    def most_tokens(self, prompt: int, negative: int) -> int:
        """Return how many tokens can follow two prompts of these lengths; 0 or less if none."""
        most = self.max_model_len - max(prompt, negative)
        if most < 1 or self._needed(prompt, negative, most) <= self.blocks:
            return most
        return (
            bisect_left(
                range(most), True, lo=1, key=lambda n: self._needed(prompt, negative, n) > self.blocks
            )
            - 1
        )

    def violations(self, prompt: int, negative: int) -> Iterator[str]:
        """Yield why a guided request with prompts of these lengths cannot run."""
        if self.max_num_seqs < 2:
            yield (
                f"a guided request takes two places in the batch: set `max_num_seqs` to at least 2, "
                f"not {self.max_num_seqs}"
            )
        for name, length in (("prompt", prompt), ("negative prompt", negative)):
            if length >= self.max_model_len:
                yield (
                    f"the {name} has {length} tokens and leaves no room for an answer: "
                    f"`max_model_len` is {self.max_model_len}"
                )
        if max(prompt, negative) < self.max_model_len and self.most_tokens(prompt, negative) < 1:
            yield (
                f"a prompt of {prompt} and a negative prompt of {negative} tokens do not fit into the KV "
                f"cache together ({self.blocks} blocks of {self.block_sizes[0]} tokens): shorten them, "
                f"or give the cache more memory"
            )

    def _needed(self, prompt: int, negative: int, tokens: int) -> int:
        """Return the blocks that both rows occupy at their end; the last token is never computed."""
        lengths = (prompt + tokens - 1, negative + tokens - 1)
        return sum(-(-length // size) for length in lengths for size in self.block_sizes)
