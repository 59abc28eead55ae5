"""Read all records of a source once: number them, find those that are there twice, group them into parts."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flagscale.errors import Problem
from tools.datasets.formats import Format
from tools.datasets.pictures.shards import Left, Part
from tools.datasets.records import Record, records

TRAIN, VALID = "train", "val"  # as Energon calls them
_PART_BYTES = 128 << 20
"""Bytes of the source after which a part ends: embedded pictures travel with it to another process."""


class Reading:
    """The parts of a source; `problems` lists the records without a part, once all parts were read."""

    def __init__(self, files: list[tuple[Path, Format]], valid_every: int, samples_per_shard: int) -> None:
        self.problems: list[Left] = []
        self._files, self._valid_every, self._samples = files, valid_every, samples_per_shard
        self._first: dict[bytes, tuple[int, str]] = {}

    def parts(self) -> Iterator[Part]:
        """Yield all parts; each holds consecutive records of one split."""
        open_parts: dict[str, list[tuple[int, Record]]] = {TRAIN: [], VALID: []}
        bytes_of, count = dict.fromkeys(open_parts, 0), dict.fromkeys(open_parts, 0)

        def closed(split: str) -> Part:
            part = Part(f"{split}-{count[split]:06d}", open_parts[split])
            open_parts[split], bytes_of[split] = [], 0
            count[split] += 1
            return part

        for number, record in self._records():
            split = VALID if self._valid_every and number % self._valid_every == 0 else TRAIN
            open_parts[split].append((number, record))
            bytes_of[split] += record.size
            if len(open_parts[split]) >= self._samples or bytes_of[split] >= _PART_BYTES:
                yield closed(split)
        for split, rest in open_parts.items():
            if rest:
                yield closed(split)

    def _records(self) -> Iterator[tuple[int, Record]]:
        number = 0
        for file, form in self._files:
            for record in records(file, form):
                if isinstance(record, Problem):
                    self.problems.append((number, record.where, record.what))
                elif first := self._earlier(number, record):
                    what = f"the same sample as {first}; a weight of the data repeats it, not a copy"
                    self.problems.append((number, record.where, what))
                else:
                    yield number, record
                number += 1

    def _earlier(self, number: int, record: Record) -> str | None:
        """Return the place of an earlier record that is equal except for its `id`; None if there is none."""
        value = record.value
        known = {key: one for key, one in value.items() if key != "id"} if isinstance(value, dict) else value
        digest = hashlib.blake2b(json.dumps(known, sort_keys=True, default=_hash).encode(), digest_size=16)
        first, where = self._first.setdefault(digest.digest(), (number, record.where))
        return None if first == number else where


def _hash(value: Any) -> str:
    """Return a text for what JSON cannot hold: pictures in Parquet, and dates or decimals beside them."""
    return hashlib.sha256(value).hexdigest() if isinstance(value, bytes) else repr(value)
