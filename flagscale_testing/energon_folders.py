"""Folders as `energon prepare` writes them, without pictures: enough for the checks of the launcher."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path


def write_folder(folder: Path, splits: Mapping[str, int]) -> Path:
    """Write a prepared folder with one shard of so many samples per split, and return it."""
    meta = folder / ".nv-meta"
    meta.mkdir(parents=True)
    counts = {f"{split}-000000.tar": samples for split, samples in splits.items()}
    for name, samples in counts.items():
        (folder / name).touch()
        (folder / f"{name}.idx").write_bytes(bytes(8 * (samples + 1)))  # of samples without files
    shards = "".join(f"  {split}:\n  - {split}-{{000000..000000}}.tar\n" for split in splits)
    (meta / ".info.json").write_text(json.dumps({"energon_version": "7.4.1", "shard_counts": counts}))
    (meta / "split.yaml").write_text(f"split_parts:\n{shards}exclude: []\n")
    (meta / "dataset.yaml").write_text("__module__: megatron.energon\n__class__: CrudeWebdataset\n")
    return folder
