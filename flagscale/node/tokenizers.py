"""Compare the two sides of a job's tokenizers: the class, which engines use, and `tokenizer.json`.

Opening a tokenizer takes seconds: it happens in a child process, and the result is kept until a file changes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from flagscale.checks.vocabulary import tokenizer_folder
from flagscale.files import cache_file, write_atomic

_COMPARER = "megatron.flagscale.tokenizer"
_TIMEOUT = 120.0
_FORMAT = 1


def odd_tokenizers(inputs: Mapping[str, Any], cwd: Path) -> list[str]:
    """Return each difference between class and file; tokenizers that are not on this host are left out."""
    found = (_difference(folder) for folder in dict.fromkeys(_folders(inputs, cwd)))
    return [what for what in found if what]


def _folders(inputs: Mapping[str, Any], cwd: Path) -> Iterator[Path]:
    if folder := tokenizer_folder(inputs, cwd):
        yield folder
    for values in inputs.get("models", ()):
        name = values.get("tokenizer") or values.get("model")
        if name and os.path.isfile(cwd / str(name) / "tokenizer.json"):
            yield cwd / str(name)


def _difference(folder: Path) -> str:
    key = json.dumps([_FORMAT, str(folder.absolute()), _version(), _stamp(folder)])
    path = cache_file("tokenizers", key)
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(path.read_text(encoding="utf-8"))["difference"])
    command = [sys.executable, "-m", _COMPARER, str(folder.absolute())]
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True, timeout=_TIMEOUT)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return ""  # the engine itself reports a tokenizer or a package that it cannot use
    with suppress(OSError):
        write_atomic(path, json.dumps({"folder": str(folder), "difference": done.stdout.strip()}, indent=1))
    return done.stdout.strip()


def _version() -> str:
    with suppress(PackageNotFoundError):
        return version("transformers")
    return ""


def _stamp(folder: Path) -> list[tuple[str, int, int]]:
    files = sorted(file for file in folder.glob("*.json") if file.is_file())
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
