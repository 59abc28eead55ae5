"""What a conversion can be asked for in vain: all of it is told before anything is read or written."""

from __future__ import annotations

from collections.abc import Iterator

from flagscale.errors import Problem

HUGGINGFACE, MEGATRON = FORMATS = ("huggingface", "megatron")


def asked_in_vain(
    source: str,
    target: str,
    *,
    vocab_size: int | None,
    iteration: int | None,
    shard_bytes: int | None,
    verify: bool,
    is_upcycled: bool,
) -> Iterator[Problem]:
    """Yield the options that say nothing to a conversion between these two `FORMATS`."""
    if source == HUGGINGFACE and vocab_size is not None:
        yield Problem("a Hugging Face folder says how many tokens it has", "--vocab-size", "leave it out")
    if source == HUGGINGFACE and iteration is not None:
        yield Problem("a Hugging Face folder holds one model", "--iteration", "leave it out")
    if target == MEGATRON and shard_bytes is not None:
        yield Problem("Megatron's checkpoints have no shards", "--max-shard-size", "leave it out")
    if verify and (is_upcycled or source == target):
        what = "logits are compared between a Hugging Face folder and a checkpoint of Megatron's only"
        yield Problem(what, "--verify-logits", "leave it out")
