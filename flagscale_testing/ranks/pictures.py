"""A training with pictures whose samples are drawn from their number: any layout reads the same ones.

The picture of a sample is of one brightness, and its answer names it, so that the loss falls only if the
pictures are seen.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import TYPE_CHECKING, Any

from flagscale.vision.arguments import vision_of
from flagscale.vision.tiling import Vision, image_tokens, tiles_of, video_tokens

if TYPE_CHECKING:
    from megatron.flagscale.vision.media import Item
    from megatron.flagscale.vision.reading import Reading

LEVELS = 8
"""The number of brightnesses; an answer counts on from its own, in the tokens 1 to 8."""
_WORDS = range(10, 200)
_SHAPES = ((1, 1), (1, 2), (2, 1), (2, 3), (1, 4))
_ANSWER = 6
_PACKED = 3
_FIRST_OF_VALIDATION = 10**6


@dataclass
class Sample:
    """The tokens of one conversation, those of its answers, and its pictures with their brightness."""

    tokens: list[int] = field(default_factory=list)
    is_answer: list[bool] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)
    levels: list[int] = field(default_factory=list)

    def add(self, tokens: Sequence[int], is_answer: bool = False) -> None:
        self.tokens += tokens
        self.is_answer += [is_answer] * len(tokens)


def drawn(number: int, vision: Vision) -> Sample:
    """Return a sample with none, one or two pictures, or with a video."""
    from megatron.flagscale.vision.media import IMAGE, VIDEO, Item

    random_ = random.Random(number)
    kind = random_.choice(("text", "one", "one", "two", *(["video"] if vision.tiling else [])))
    sample, side = Sample(), vision.tower.side
    pictures = {"text": 0, "one": 1, "two": 2, "video": 1}[kind]
    for _ in range(max(pictures, 1)):
        words = random_.choices(_WORDS, k=random_.randint(1, 9))
        sample.add(words)
        level = random_.randrange(LEVELS)
        if kind == "video":
            frames = random_.randint(1, vision.video_frames)
            sample.items.append(Item(VIDEO, side, side, frames))
            sample.add([int(vision.video_token)] * video_tokens(frames, vision))
        elif pictures:
            rows, columns = random_.choice(_SHAPES)
            size = rows * side - random_.randrange(side // 2), columns * side - random_.randrange(side // 2)
            sample.items.append(Item(IMAGE, *size, tiles_of(size, vision, pictures)))
            sample.add([int(vision.image_token)] * image_tokens(size, vision, pictures))
        else:
            level = words[0] % LEVELS
        sample.levels += [level] * bool(pictures)
        sample.add([1 + (level + step) % LEVELS for step in range(_ANSWER)], is_answer=True)
    return sample


def micro_batch(samples: Sequence[Sequence[Sample]], vision: Vision, reading: Reading) -> dict[str, Any]:
    """Return a micro-batch of sequences, each of one sample or several packed ones."""
    import torch

    from megatron.flagscale.vision.media import Media

    side = vision.tower.side
    longest = max(sum(len(one.tokens) for one in row) for row in samples)
    length = reading.length or longest + -longest % reading.multiple
    rows: dict[str, list[list[Any]]] = {name: [] for name in ("tokens", "labels", "loss_mask", "starts")}
    for row in samples:
        padding = length - sum(len(one.tokens) for one in row)
        assert padding >= 0, "the samples are too long"
        tokens = [token for one in row for token in one.tokens] + [0] * padding
        answers = [answer for one in row for answer in one.is_answer] + [False] * padding
        rows["tokens"].append(tokens)
        rows["labels"].append([*tokens[1:], 0])
        rows["loss_mask"].append([float(answer) for answer in (*answers[1:], False)])
        rows["starts"].append([])
        for size in (*(len(one.tokens) for one in row), padding):
            rows["starts"][-1] += [len(rows["starts"][-1])] * size
    batch: dict[str, Any] = {
        name: torch.tensor(values, dtype=torch.float32 if name == "loss_mask" else torch.int64)
        for name, values in rows.items()
    }
    batch["position_ids"] = torch.arange(length) - batch["starts"]
    if all(len(row) == 1 for row in samples):
        del batch["starts"]
    flat = [one for row in samples for one in row]
    batch["lengths"] = [len(one.tokens) for one in flat]
    if reading.has_pictures:
        items = [item for one in flat for item in one.items]
        levels = [level for one in flat for level in one.levels]
        tiles = [
            torch.full((item.tiles, 3, side, side), level * 255 // LEVELS, dtype=torch.uint8)
            for item, level in zip(items, levels, strict=True)
        ]
        batch["media"] = Media(
            torch.cat([torch.empty(0, 3, side, side, dtype=torch.uint8), *tiles]), tuple(items)
        )
    return batch


def loaders(args: argparse.Namespace, reading: Reading | None) -> tuple[Any, Any]:
    """Return training and validation data, as `train_llava` asks for them."""
    if reading is None:
        return None, None
    vision = vision_of(vars(args))
    packed = _PACKED if args.packing_buffer_size else 1

    def batches(first: int, size: int) -> Iterator[dict[str, Any]]:
        for number in count(reading.rank, reading.ranks):
            begin = (first + number * size) * packed
            rows = [range(begin + row * packed, begin + (row + 1) * packed) for row in range(size)]
            yield micro_batch([[drawn(one, vision) for one in row] for row in rows], vision, reading)

    of_each = args.eval_global_batch_size // (args.eval_micro_batch_size * reading.ranks)
    evaluations = (
        islice(batches(_FIRST_OF_VALIDATION, args.eval_micro_batch_size), args.eval_iters * of_each)
        for _ in count()
    )
    return batches(args.consumed_train_samples, args.micro_batch_size), chain.from_iterable(evaluations)


def train(argv: list[str]) -> None:
    """Train as one rank of `train_llava` does, on drawn samples."""
    from flagscale.checks import data, worker
    from megatron.flagscale import program, train_llava
    from megatron.flagscale.vision.training import external

    # The rules about folders and tokenizers do not apply: there are none.
    for rules in (data, worker):
        vars(rules)["has_pictures"] = lambda values: False

    def datasets(num_samples: object, vp_stage: int | None = None) -> tuple[Any, Any, None]:
        return external(loaders, vp_stage)

    datasets.is_distributed = True  # type: ignore[attr-defined]
    program.train(
        argv,
        add_arguments=train_llava.add_arguments,
        model_config=train_llava.model_config,
        datasets=datasets,
        forward_step=train_llava.forward_step,
    )


def blind() -> None:
    """Let the tower see only black tiles: a mutation that a comparison has to notice (see `Run`)."""
    from megatron.flagscale.vision.tower import VisionTower

    see = VisionTower.forward
    setattr(VisionTower, "forward", lambda self, tiles: see(self, tiles * 0))  # noqa: B010
