"""Tiny Energon folders of conversations or numbers, and an encoder that passes on their numbers."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.energon import Cooker, DefaultTaskEncoder, Sample, basic_sample_keys, edataclass, stateless
from megatron.energon.epathlib import EPath
from megatron.energon.flavors import BaseWebdatasetFactory
from PIL import Image

from energon_flagscale.epochs import CleanEpochs

SPLITS = ("train", "val", "test")


def write_folder(
    folder: Path,
    samples: Sequence[Mapping[str, bytes]],
    shards: int = 2,
    split: tuple[float, float, float] = (1.0, 0.0, 0.0),
) -> Path:
    """Write samples (file extension -> content) in equal shards, and prepare the folder; return it."""
    folder.mkdir(parents=True)
    each = -(-len(samples) // shards)
    names = []
    for shard in range(shards):
        names.append(f"shard_{shard:03d}.tar")
        with tarfile.open(folder / names[-1], "w") as tar:
            for number in range(shard * each, min((shard + 1) * each, len(samples))):
                for extension, content in samples[number].items():
                    info = tarfile.TarInfo(f"{number:06d}.{extension}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    ratios = list(zip(SPLITS, split, strict=True))
    BaseWebdatasetFactory.prepare_dataset(EPath(folder), names, split_parts_ratio=ratios, workers=1)
    described = "__module__: megatron.energon\n__class__: CrudeWebdataset\n"
    (folder / ".nv-meta" / "dataset.yaml").write_text(described)
    return folder


def numbers(count: int, first: int = 0) -> list[dict[str, bytes]]:
    """Return samples that are only their numbers."""
    return [{"json": json.dumps({"number": one}).encode()} for one in range(first, first + count)]


def write_numbers(folder: Path, count: int, first: int = 0) -> Path:
    """Write an Energon folder of `count` numbers."""
    return write_folder(folder, numbers(count, first))


def conversation(number: int, picture: bytes | None = None) -> dict[str, bytes]:
    """Return a sample about one picture, whose answer is the number of its sample.

    The picture's height and width differ from sample to sample; `picture` replaces it.
    """
    question = [{"type": "image"}, {"type": "text", "text": "Which?"}]
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": [{"type": "text", "text": str(number)}]},
    ]
    if picture is None:
        size, file = (30 + 7 * (number % 5), 30 + 11 * (number % 3)), io.BytesIO()
        colour = (number * 37 % 256, number * 91 % 256, number % 256)
        Image.new("RGB", size, colour).save(file, "PNG")
        picture = file.getvalue()
    return {"json": json.dumps({"messages": messages}).encode(), "image0.png": picture}


@edataclass
class Numbered(Sample):
    """A sample that is only its number."""

    number: int


@stateless
def cook(sample: dict[str, Any]) -> Numbered:
    """Return the sample of a crude one."""
    return Numbered(**basic_sample_keys(sample), number=sample["json"]["number"])


class NumberEncoder(CleanEpochs, DefaultTaskEncoder[Any, Any, Any, Any]):
    """Micro-batches of numbers; those in `broken` cannot be used."""

    cookers = (Cooker(cook),)

    def __init__(self, broken: Sequence[int] = ()) -> None:
        super().__init__()
        self.broken = frozenset(broken)

    @stateless
    def encode_sample(self, sample: Numbered) -> Numbered:
        """Return the sample; raise ValueError if it is broken."""
        if sample.number in self.broken:
            raise ValueError(f"the picture of {sample.number} is broken")
        return sample

    @stateless
    def batch(self, samples: list[Numbered]) -> dict[str, Any]:
        """Return a micro-batch of the loader's form, with a sequence of one token per sample."""
        tokens = torch.tensor([[sample.number] for sample in samples])
        return {
            "tokens": tokens,
            "labels": tokens,
            "loss_mask": torch.ones(tokens.shape),
            "position_ids": torch.zeros_like(tokens),
            "keys": [sample.__key__ for sample in samples],
        }


def train(argv: list[str]) -> None:
    """Train as one rank of `train_llava` does."""
    from megatron.flagscale import program, train_llava

    program.train(
        argv,
        add_arguments=train_llava.add_arguments,
        model_config=train_llava.model_config,
        datasets=train_llava.datasets,
        forward_step=train_llava.forward_step,
    )
