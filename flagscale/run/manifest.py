"""The manifest of a checkpoint: its files, sizes and sampled checksums, written when the save is finished.

It shows whether a checkpoint folder is complete. This module only handles files and does not import torch.
"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from flagscale.files import write_atomic
from flagscale.run.checkpoints import TRACKER, tracked

MANIFEST = "manifest.json"
RANK_FILE = "model_optim_rng.pt"
"""In a checkpoint in Megatron's `torch` format, the file of each rank, in folders named `mp_rank_*`."""
FOLDER = re.compile(r"iter_(\d{7,})")
"""The name of the folder of an iteration's checkpoint."""
_BLOCK = 64 * 1024
_BLOCKS = 16  # per file at most: one megabyte is read, however large the file is


@dataclass(frozen=True)
class Candidate:
    """One iteration folder of a checkpoint directory; `fault` is why it cannot be used, or empty."""

    iteration: int
    path: Path
    fault: str
    unfinished: bool

    @property
    def usable(self) -> bool:
        return not self.fault


def sampled_crc(path: Path) -> int:
    """Return the crc32 of the head, the tail and evenly spaced blocks of a file: cheap for any size."""
    size = path.stat().st_size
    last = max(0, size - _BLOCK)
    offsets = sorted({last * index // (_BLOCKS - 1) for index in range(_BLOCKS)})
    crc = 0
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            crc = zlib.crc32(file.read(_BLOCK), crc)
    return crc


def write_manifest(folder: Path) -> None:
    """Write the manifest of a finished checkpoint, atomically."""
    files = {
        path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "crc": sampled_crc(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    write_atomic(folder / MANIFEST, json.dumps({"version": 1, "files": files}, indent=1))


def fault_of(folder: Path) -> str:
    """Return why a checkpoint cannot be used, or an empty string."""
    manifest = folder / MANIFEST
    if not manifest.exists():
        if _was_finished(folder):
            return ""
        if is_torch_format(folder):
            return f"in Megatron's `torch` format, and {TRACKER} does not show that its save was finished"
        return "its save was not finished"
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            size = path.stat().st_size
            if size != expected["size"]:
                return f"{name} has {size} bytes instead of {expected['size']}"
            if sampled_crc(path) != expected["crc"]:
                return f"{name} was changed after it was saved"
    except OSError as error:
        return f"it cannot be read: {error}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} cannot be read"
    return ""


def is_torch_format(folder: Path) -> bool:
    """Return whether a folder is a checkpoint in Megatron's `torch` format: with one folder per rank."""
    return any(folder.glob(f"mp_rank_*/{RANK_FILE}"))


def _was_finished(folder: Path) -> bool:
    """Return whether the engine wrote what it writes last; for checkpoints without a manifest.

    That is the index, or in the `torch` format the tracker, which then names this iteration or a later one.
    """
    if is_torch_format(folder):
        named, iteration = tracked(folder.parent), iteration_of(folder.name)
        is_reached = iteration is not None and named.isdigit() and iteration <= int(named)
        return named == folder.name or is_reached
    return all((folder / name).is_file() for name in (".metadata", "metadata.json"))


def iteration_of(name: str) -> int | None:
    """Return the iteration of a checkpoint's folder; None if it has another name."""
    match = FOLDER.fullmatch(name)
    return int(match[1]) if match else None


def candidates(directory: Path) -> Iterator[Candidate]:
    """Yield the checkpoints of a directory, newest first; each is verified only when it is requested."""
    if not directory.is_dir():
        return
    found = ((iteration_of(path.name), path) for path in directory.iterdir())
    numbered = [(iteration, path) for iteration, path in found if iteration is not None]
    for iteration, path in sorted(numbered, reverse=True):
        unfinished = not (path / MANIFEST).exists() and not _was_finished(path)
        yield Candidate(iteration, path, fault_of(path), unfinished)
