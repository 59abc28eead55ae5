"""Measure the loader of pictures against plain Energon: `python -m benchmarks.picture_loader [PICTURES]`.

Both sides decode the same JPEGs (480 to 1 280 pixels, one per sample) and cut them into tiles of 384 pixels
as LLaVA-OneVision does, with the same encoder, shuffle buffer and micro-batch. Plain Energon is its
`get_train_dataset` and `get_savable_loader` as they come; ours adds clean epochs, the messages about skipped
samples, and its place in the data (saved every 50 micro-batches). Three rounds, alternating, each in a
process of its own that reads without workers, so that its CPU seconds are those of one core.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROUNDS = 3
PICTURES = 150
SHAPES = ((640, 480), (1024, 768), (480, 640), (1280, 720), (800, 800))
SAVES = 50
OURS, PLAIN = "ours", "Energon"


def photo(number: int) -> bytes:
    """Return a JPEG with the detail of a photo: smooth shapes and some noise."""
    import numpy as np
    from PIL import Image

    width, height = SHAPES[number % len(SHAPES)]
    noise = np.random.default_rng(number)
    coarse = Image.fromarray(noise.integers(0, 256, (height // 40, width // 40, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    pixels = np.clip(smooth + noise.integers(-12, 13, smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def write(folder: Path) -> None:
    """Write the tokenizer and an Energon folder of 100 photos."""
    from flagscale_testing.energon import write_folder
    from flagscale_testing.pictures import write_tokenizer

    question = [{"type": "image"}, {"type": "text", "text": "What is in the picture? " * 8}]
    answer = [{"type": "text", "text": "Nothing that anybody would know. " * 16}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    text = json.dumps({"messages": messages}).encode()
    write_folder(folder / "data", [{"json": text, "image0.jpg": photo(number)} for number in range(100)], 4)
    write_tokenizer(folder / "tokenizer")


def encoder(folder: Path) -> Any:
    """Return the encoder of a training of LLaVA-OneVision."""
    from transformers import AutoTokenizer

    from energon_flagscale.encoder import Encoder, Sequences
    from energon_flagscale.epochs import CleanEpochs
    from flagscale.vision.arguments import usual_grids
    from flagscale.vision.tiling import Tiling, Vision
    from flagscale.vision.tower import TOWERS

    class Repeating(CleanEpochs, Encoder):
        pass

    tower = TOWERS["siglip"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    return Repeating(tokenizer, Vision(tower, Tiling(usual_grids(tower.side))), Sequences(16384))


def batches(side: str, folder: Path) -> Iterator[dict[str, Any]]:
    """Yield one side's micro-batches, of one sample each."""
    from megatron.energon import WorkerConfig, get_savable_loader, get_train_dataset

    from energon_flagscale.training_data import Readers, TrainingData, training_dataset

    path = str(folder / "data")
    if side == PLAIN:
        dataset = get_train_dataset(
            path,
            worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
            batch_size=1,
            shuffle_buffer_size=20,
            max_samples_per_sequence=100,
            task_encoder=encoder(folder),
        )
        yield from get_savable_loader(dataset)
        return
    readers = Readers(rank=0, ranks=1, workers=0, micro_batch_size=1, shuffle_buffer_size=20)
    data = TrainingData(training_dataset(path, encoder(folder), readers), readers)
    for number, batch in enumerate(data, 1):
        yield batch
        if number % SAVES == 0:
            data.place()


def measure(side: str, folder: Path, pictures: int) -> dict[str, Any]:
    """Read on one core; return pictures, tiles, CPU seconds, and the peak memory after each quarter."""
    found = batches(side, folder)
    for _ in range(5):
        next(found)
    before, began, tiles, peaks = time.process_time(), time.perf_counter(), 0, []
    for number in range(1, pictures + 1):
        tiles += len(next(found)["media"].tiles)
        if number % (pictures // 4) == 0:
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    cpu, wall = time.process_time() - before, time.perf_counter() - began
    return {"pictures": pictures, "tiles": tiles, "cpu": cpu, "wall": wall, "peaks": peaks}


def in_child(side: str, folder: Path, pictures: int) -> dict[str, Any]:
    """Return what `measure` returns in a process of its own."""
    reads, writes = os.pipe()
    if pid := os.fork():
        os.close(writes)
        with os.fdopen(reads) as answer:
            found: dict[str, Any] = json.loads(answer.read())
        os.waitpid(pid, 0)
        return found
    try:
        found = measure(side, folder, pictures)
        os.write(writes, json.dumps(found).encode())
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)


def main(pictures: int = PICTURES) -> None:
    """Print the figures of each round, and their ratio."""
    import torch

    torch.set_num_threads(1)
    speeds: dict[str, list[float]] = {OURS: [], PLAIN: []}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(folder)
        for number in range(ROUNDS):
            sides = [OURS, PLAIN]
            random.Random(number).shuffle(sides)
            for side in sides:
                found = in_child(side, folder, pictures)
                speeds[side].append(found["pictures"] / found["cpu"])
                peaks = ", ".join(f"{peak:.0f}" for peak in found["peaks"])
                print(
                    f"round {number + 1}, {side}: {speeds[side][-1]:.1f} pictures per CPU second, "
                    f"{found['tiles'] / found['cpu']:.0f} tiles; peak memory after each quarter: {peaks} MiB",
                    flush=True,
                )
    ratios = sorted(ours / plain for ours, plain in zip(speeds[OURS], speeds[PLAIN], strict=True))
    print(
        f"ours {statistics.median(speeds[OURS]):.1f}, Energon {statistics.median(speeds[PLAIN]):.1f} pictures"
    )
    print(f"ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
