"""Let Energon prepare a folder of shards, and tell whether it did.

Run as a file, this is Energon's own command in a process that ends with the one that started it.
"""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[3])

from flagscale.checks.energon_folder import META
from flagscale.errors import UserError
from flagscale.linux import die_with

FILES = (".info.json", "dataset.yaml", "index.sqlite", "index.uuid", "split.yaml")
"""Without any of these, Energon does not open a folder, or not all of it."""
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
    command = [sys.executable, __file__, str(os.getpid()), "prepare", *options, *patterns]
    done = subprocess.run(
        [*command, "--sample-type=CrudeWebdataset", str(folder)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    printed = f"{done.stdout}\n{done.stderr}"
    if full := next((sign for sign in _FULL_DISK if sign in printed), None):
        raise UserError(f"{full}: {folder / META}")
    info = folder / META / ".info.json"
    counts = json.loads(info.read_text())["shard_counts"] if done.returncode == 0 and info.is_file() else {}
    if counts != dict(shards):
        raise RuntimeError(f"energon prepare did not count the samples of {folder}:\n{printed}")
    (folder / META / "index.uuid").write_text(str(uuid.uuid5(uuid.NAMESPACE_OID, identity)))


def _main() -> None:
    """Run Energon's command; another run may write to the folder as soon as its parent is gone."""
    die_with(int(sys.argv.pop(1)))
    os.register_at_fork(after_in_child=lambda: die_with(os.getppid()))
    from megatron.energon.cli.main import main

    main()


if __name__ == "__main__":
    _main()
