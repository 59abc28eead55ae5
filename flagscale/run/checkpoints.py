"""The files of a directory of Megatron checkpoints that the launcher reads: which one is the newest, and the
arguments that it was trained with.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flagscale.files import write_atomic

TRACKER = "latest_checkpointed_iteration.txt"
ARGUMENTS = "arguments.json"
RELEASE = "release"
"""Folder name and tracker file content of a checkpoint that does not belong to an iteration."""
_VERSION = 1


def folder_of(iteration: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"iter_{iteration:07d}"


def tracked(directory: Path) -> str:
    """Return what the tracker file of a directory names: an iteration or `release`, or nothing."""
    tracker = directory / TRACKER
    return tracker.read_text(encoding="utf-8", errors="replace").strip() if os.path.isfile(tracker) else ""


def newest(directory: Path) -> Path | None:
    """Return the folder of the checkpoint that the tracker file names; None if there is none.

    A run resumes from an older one if the worker finds that this one is damaged.
    """
    with suppress(OSError, ValueError):
        named = tracked(directory)
        folder = directory / (RELEASE if named == RELEASE else folder_of(int(named)))
        return folder if os.path.isdir(folder) else None
    return None


def write_arguments(folder: Path, arguments: Mapping[str, Any]) -> None:
    """Store with a checkpoint what `checks.recorded.record` returns."""
    write_atomic(
        folder / ARGUMENTS, json.dumps({"version": _VERSION, "arguments": arguments}, indent=1) + "\n"
    )


def read_arguments(folder: Path) -> dict[str, Any] | None:
    """Return what was stored with a checkpoint; None if nothing was, as with those of other tools."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        stored = json.loads((folder / ARGUMENTS).read_text(encoding="utf-8"))
        if stored["version"] == _VERSION:
            return dict(stored["arguments"])
    return None
