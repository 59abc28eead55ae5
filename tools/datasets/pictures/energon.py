"""Let Energon prepare a folder of shards, and tell whether it did."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flagscale.errors import UserError

META = ".nv-meta"
FILES = (".info.json", "dataset.yaml", "index.sqlite", "index.uuid", "split.yaml")
"""Without any of these, Energon does not open a folder, or not all of it."""
_PREPARE = "from megatron.energon.cli.main import main; main()"
_FULL_DISK = ("No space left on device", "Disk quota exceeded", "database or disk is full")


def check_installed() -> None:
    """Raise UserError if Megatron-Energon is not installed."""
    try:
        version("megatron-energon")
    except PackageNotFoundError:
        raise UserError(
            "the package `megatron-energon` is not installed\n    pip install 'flagscale[vlm]'"
        ) from None


def prepare(folder: Path, shards: Mapping[str, int], identity: str) -> None:
    """Write the index of the shards in `folder` (name -> number of samples); a name begins with its split.

    Energon's own command does it, with one process, so that the same shards give the same index. Energon
    identifies the contents of a folder by a UUID, which it draws anew each time; `identity` decides it here.

    Raises:
        UserError: the disk is full.
    """
    splits = sorted({name.partition("-")[0] for name in shards}, reverse=True)
    patterns = [f"--split-parts={split}:{split}-.*" for split in splits]
    options = ["--non-interactive", "--no-progress", "--force-overwrite", "--num-workers=1"]
    command = [sys.executable, "-c", _PREPARE, "prepare", *options, "--sample-type=CrudeWebdataset"]
    # Python would look for packages in the current folder first, which a user chose for other reasons.
    environment = {**os.environ, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [*command, *patterns, str(folder)],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    told = f"{done.stdout}\n{done.stderr}"
    if full := next((sign for sign in _FULL_DISK if sign in told), None):
        raise UserError(f"{full}: {folder / META}")
    info = folder / META / ".info.json"
    counts = json.loads(info.read_text())["shard_counts"] if done.returncode == 0 and info.is_file() else {}
    if counts != dict(shards):
        raise RuntimeError(f"energon prepare did not count the samples of {folder}:\n{told}")
    (folder / META / "index.uuid").write_text(str(uuid.uuid5(uuid.NAMESPACE_OID, identity)))
