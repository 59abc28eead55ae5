"""Draw samples at random from an Energon folder or a blend. Imports Energon, and with it torch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron.energon import (
    Cooker,
    DefaultTaskEncoder,
    Sample,
    WorkerConfig,
    basic_sample_keys,
    edataclass,
    get_loader,
    get_train_dataset,
    stateless,
)

from flagscale.checks.energon_blend import read_data
from flagscale.errors import Problem, UserError, first_line


@edataclass
class Crude(Sample):
    """The files of a sample, as Energon reads them."""

    files: dict[str, Any]


@stateless
def _keep(sample: dict[str, Any]) -> Crude:
    return Crude(**basic_sample_keys(sample), files=sample)


class _Encoder(DefaultTaskEncoder):
    cookers = (Cooker(_keep),)
    decoder = None

    def encode_batch(self, batch: Any) -> Any:
        return batch

    def batch(self, samples: list[Crude]) -> list[Crude]:
        return samples


def crude_samples(data: Path, split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Yield the files of `count` samples at random; of a folder with fewer, all.

    Raises:
        UserError: the data is not what the launcher would accept, or Energon cannot open the split.
    """
    if wrong := read_data(data, split).wrong:
        raise UserError([Problem(what) for what in wrong])
    try:
        dataset = get_train_dataset(
            data,
            split_part=split,
            worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0, seed_offset=seed),
            batch_size=1,
            shuffle_buffer_size=None,
            max_samples_per_sequence=1,  # so that each sample may come from another place
            repeat=data.is_file(),  # a blend by weights has no end
            task_encoder=_Encoder(),
        )
        loader = get_loader(dataset)
        loader.pin_memory = False  # which Energon asks for, though nothing is copied to a device here
        batches = iter(loader)
    except (AssertionError, KeyError, OSError, ValueError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise UserError(f"{data}: Energon cannot open the split `{split}` ({reason})") from error
    yield from (sample.files for batch in itertools.islice(batches, count) for sample in batch)
