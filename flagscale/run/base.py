"""The base of adapters: the checkpoint that `pretrained_checkpoint` names, and what identifies it.

The launcher and the ranks compare it with the base that adapters were trained on.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from flagscale.errors import UserError
from flagscale.run.checkpoints import TRACKER, folder_of, tracked
from flagscale.run.manifest import fault_of, is_torch_format, sampled_crc


def base_folder(directory: Path) -> Path:
    """Return the folder of the checkpoint that the tracker of a directory names.

    Raises:
        UserError: there is none, it is damaged, or it is not in the format `torch_dist`.
    """
    if not (named := tracked(directory)):
        raise UserError(f"no checkpoint of a base in {directory}: it has no {TRACKER}")
    folder = directory / (folder_of(int(named)) if named.isdecimal() else named)
    if is_torch_format(folder):
        what = f"the base {folder} is in Megatron's `torch` format"
        raise UserError(f"{what}: convert it to torch_dist with tools/checkpoint/convert.py")
    if fault := fault_of(folder) if folder.is_dir() else "no such folder":
        raise UserError(f"the base {folder} cannot be used: {fault}")
    return folder


def identity(folder: Path) -> str:
    """Return a hash of a checkpoint's tensors, which stays the same if the folder is moved.

    It is made of the sizes and sampled checksums of the files that hold them: the same weights saved in
    another layout are another base.
    """
    files = sorted(folder.glob("*.distcp"))
    found = [(path.name, path.stat().st_size, sampled_crc(path)) for path in files]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()
