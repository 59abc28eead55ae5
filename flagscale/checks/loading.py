"""The place of the readers of pictures in their data, which a checkpoint holds: what it fits, and what not.

A reader is a worker process of a data parallel rank, or the rank itself with `num_workers: 0`. Each reads a
part of the data that depends only on its number among all readers (megatron-energon 7.4.1), so their number
has to stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.errors import Violation
from flagscale.formats import count

RANKS = "data_parallel_size"
"""The number of data parallel ranks, which the launcher adds to the arguments once it knows the hosts."""
WORKERS, BATCH = "num_workers", "micro_batch_size"
ORDER = ("shuffle_buffer_size", "max_samples_per_sequence", "packing_buffer_size")
"""Arguments that only a program has that reads pictures: how a reader orders its samples."""
_LENGTHS = ("seq_length", "several_images", "video_frames", "chat_template")
"""Arguments that decide which samples a packed sequence holds."""
READING = (*ORDER, WORKERS, BATCH, RANKS)
"""What is stored with a checkpoint about its readers."""
_ANEW = "set `finetune: true` to start a new training with its weights"


def readers_of(values: Mapping[str, Any]) -> int:
    """Return how many readers the arguments (by dest) give; 0 if unknown."""
    ranks, workers = values.get(RANKS), values.get(WORKERS)
    if not isinstance(ranks, int) or not isinstance(workers, int):
        return 0
    return _readers(ranks, workers)


def too_few(samples: int, ranks: int, workers: int | None) -> str:
    """Return that some readers of a split would have nothing to read; "" if all have.

    `workers` is None in an evaluation: of a rank's workers, some may have nothing to read.
    """
    readers = _readers(ranks, workers or 0)
    if samples >= readers:
        return ""
    if workers is None:
        how = "hold out more, or set eval_iters 0"
        return f"{count(samples, 'sample')} for {ranks} data parallel ranks: each needs one; {how}"
    who = f"data parallel size {ranks}, num_workers {workers}"
    return f"{count(samples, 'sample')} for {readers} readers ({who}): each needs one; use fewer readers"


def loading_violations(name: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield each argument with which the readers cannot continue where those of a checkpoint were.

    `name` is how messages call it, `saved` its record. It says nothing if one of both reads no pictures.
    """
    if ORDER[0] not in saved or ORDER[0] not in now:
        return
    packs = _LENGTHS if saved[ORDER[-1]] else ()
    for key in (*ORDER, *packs):
        if key in saved and now.get(key) != saved[key]:
            what = (
                f"`{key}` is {now[key]}, but {name} was trained with {saved[key]}, and its place in the data"
            )
            yield key, f"{what} fits no other value: use {saved[key]}, or {_ANEW}"
    yield from _division_violations(name, saved, now)
    before, after = saved.get(BATCH), now.get(BATCH)
    if isinstance(before, int) and isinstance(after, int) and after > 0 and before % after:
        what = f"`{BATCH}` is {after}, but {name} was trained with {before}, and its readers count in whole"
        yield BATCH, f"{what} micro-batches: use {before} or a divisor of it, or {_ANEW}"


def _division_violations(name: str, saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Violation]:
    before, after = readers_of(saved), readers_of(now)
    if not before or not after or before == after:
        return
    given = f"data parallel size {now[RANKS]} with `{WORKERS}: {now[WORKERS]}`"
    of = f"data parallel size {saved[RANKS]}, `{WORKERS}: {saved[WORKERS]}`"
    had = f"{name} has the places of {before} ({of})"
    workers, rest = divmod(before, now[RANKS])
    if rest:
        sizes = ", ".join(str(size) for size in range(1, before + 1) if before % size == 0)
        instead = f"use a data parallel size that divides {before} ({sizes})"
    else:
        instead = f"use `{WORKERS}: {workers}`"
    yield WORKERS, f"{given} reads with {count(after, 'reader')}, but {had}: {instead}, or {_ANEW}"


def _readers(ranks: int, workers: int) -> int:
    return ranks * max(1, workers)
