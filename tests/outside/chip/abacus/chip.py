"""The abacus as a rank uses it: the CPU's behaviour, with a record of what the worker asks for."""

import os
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch.distributed as dist

from abacus.platform import VISIBLE
from megatron.flagscale.chips import HOST, Chip
from megatron.flagscale.chips.cpu import CPU
from megatron.flagscale.patching import Patch

# Collectives of its own name: what a vendor's library does when it is imported.
dist.Backend.register_backend(
    "abacus",
    lambda store, rank, size, timeout: dist.ProcessGroupGloo(store, rank, size, timeout),
    devices=[HOST],
)

_FIELDS = {field.name for field in fields(Chip)}


def _note(*words: object) -> None:
    line = " ".join(map(str, (os.environ.get("RANK", "-"), *words)))
    with open(os.environ["ABACUS_RECORD"], "a", encoding="utf-8") as record:
        record.write(f"{line}\n")


class Recording(Chip):
    """A chip that notes each of its fields that is read."""

    def __getattribute__(self, name: str) -> Any:
        if name in _FIELDS:
            _note("asked", name)
        return super().__getattribute__(name)


def _noting(original: Callable[..., Any]) -> Callable[..., Any]:
    _note("patched")
    return original


_PATCH = Patch("megatron.training.training:print_datetime", _noting, "To note that it was applied.", "abacus")


def _set_device(local_rank: int) -> None:
    _note("set_device", local_rank, "of", os.environ.get(VISIBLE))


ABACUS = Recording(
    **{
        **{name: getattr(CPU, name) for name in _FIELDS},
        "name": "abacus",
        "backend": "abacus",
        "patches": (*CPU.patches, _PATCH),
        "defaults": (*CPU.defaults, "--log-throughput"),
        "set_device": _set_device,
        "memory_bytes": lambda: 8_128,
    }
)
