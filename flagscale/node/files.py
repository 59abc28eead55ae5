"""Write files of a run on this host, and read them piece by piece, for a launcher that does not see them."""

from __future__ import annotations

import base64
import zlib
from pathlib import Path

from flagscale.errors import FlagScaleError
from flagscale.files import write_atomic
from flagscale.run.logs import find_run, path_of, read_piece
from flagscale.run.state import Reply
from flagscale.values import LaunchPlan, NodeCommand


def packed(text: str) -> str:
    """Return a text as `put` reads it: much smaller, because each of 1 000 hosts gets the plan of all."""
    return base64.b64encode(zlib.compress(text.encode(errors="surrogateescape"))).decode("ascii")


def unpacked(content: str) -> str:
    """Return the text that was packed."""
    return zlib.decompress(base64.b64decode(content)).decode(errors="surrogateescape")


def put(directory: str, relative: str, mode: str, content: str) -> Reply:
    """Write a file below the run directory atomically; `mode` is octal, `content` as `packed` returns it.

    Reply: {"ok": True}.
    """
    root = Path(directory)
    path = root / relative
    if not path.resolve().is_relative_to(root.resolve()):
        raise FlagScaleError(f"{relative} is not below {root}")
    try:
        write_atomic(path, unpacked(content), int(mode, 8))
    except OSError as error:
        raise FlagScaleError(f"cannot write {path}: {error.strerror}") from None
    return {"ok": True}


def read(plan: LaunchPlan, node: NodeCommand, name: str, position: str, size: str) -> Reply:
    """Read a piece of a file; see `read_piece`. Reply: {"data": base64, "size": file size, 0 if missing}."""
    data, total = read_piece(path_of(plan, node, name), int(position), int(size))
    return {"data": base64.b64encode(data).decode("ascii"), "size": total}


def begin(plan: LaunchPlan, node: NodeCommand) -> Reply:
    """Reply: {"position": at which this run's part of the host's log begins, None if it has none}."""
    return {"position": find_run(path_of(plan, node, "output"), plan.run_id)}
