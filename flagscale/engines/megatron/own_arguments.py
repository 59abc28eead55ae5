"""The arguments of a training program, as its own parser declares them: asked in a child process, cached.

A cache entry holds for one program file and one Python version, and as long as the program and every file of
the user's that it imported have the same content.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flagscale.config.catalog import Option, catalog_of
from flagscale.errors import Problem, UserError
from flagscale.files import write_atomic

TIME_LIMIT = 20.0
"""Seconds that a program has to be imported and to add its arguments."""

SOURCE_ROOT = Path(__file__).resolve().parents[3]
_ENGINES = ("torch", "megatron", "vllm", "transformers")
_FORMAT = 1
"""Of a cache entry; another number makes older entries unread."""


def is_engine(module: str) -> bool:
    """Whether a module belongs to an engine. Our own modules are judged by what they import."""
    return module.split(".")[0] in _ENGINES and not f"{module}.".startswith("megatron.flagscale.")


def own_arguments(entrypoint: str, source: Path, where: str) -> dict[str, Option]:
    """Return the arguments that a program's `add_arguments` adds, by name without dashes.

    Raises:
        UserError: if the program fails or takes longer than `TIME_LIMIT`; `where` is where it is named.
    """
    path = cache_file(source)
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        entry = json.loads(path.read_text(encoding="utf-8"))
        if str(source.resolve()) in entry["files"] and _hashes(entry["files"]) == entry["files"]:
            return _options(entry["arguments"])
    answer = _ask(entrypoint, source, where)
    options = _options(answer["arguments"])
    entry = {"files": _hashes(answer["files"]), "arguments": answer["arguments"]}
    with suppress(OSError):  # a home that cannot be written only costs time
        write_atomic(path, json.dumps(entry, indent=1))
    return options


def cache_file(source: Path) -> Path:
    """Return where the arguments of a program are kept: in the user's cache, not in a run directory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = f"{_FORMAT} {sys.version} {source.resolve()}"
    return cache / "flagscale" / "programs" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def _hashes(files: Mapping[str, str] | list[str]) -> dict[str, str]:
    return {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}


def _options(arguments: Mapping[str, Any]) -> dict[str, Option]:
    return dict(catalog_of({"engine": "", "version": "", "arguments": arguments}).options)


def _ask(entrypoint: str, source: Path, where: str) -> dict[str, Any]:
    """Start the child process (`describe_program`) and return its answer."""
    paths = [str(SOURCE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: the ranks do not see the working directory unless the program is a module, and then it is added.
    command = [sys.executable, "-P", "-B", "-m", "flagscale.engines.megatron.describe_program"]
    child = subprocess.Popen(
        [*command, entrypoint, str(source), str(TIME_LIMIT)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        # The child ends by itself and says where it was; this is for one that does not even do that.
        printed, complained = child.communicate(timeout=TIME_LIMIT + 2)
    except subprocess.TimeoutExpired:
        _end(child)
        printed, complained = child.communicate()
    finally:
        _end(child)
    if not printed and ("Timeout (" in complained or child.returncode == -signal.SIGKILL):
        line = re.search(rf'File "{re.escape(str(source))}", line (\d+)', complained)
        what = f"is still running after {TIME_LIMIT:g} s, when it is imported to read its arguments"
        hint = 'put what it does under `if __name__ == "__main__":`'
        raise UserError([Problem(f"`{entrypoint}` {what}", f"{source}:{line[1]}" if line else where, hint)])
    try:
        answer: dict[str, Any] = json.loads(printed)
    except ValueError:
        last = complained.strip().splitlines()[-1:] or [f"exit code {child.returncode}"]
        what = f"`{entrypoint}` ended when it was imported to read its arguments: {last[0]}"
        raise UserError([Problem(what, where)]) from None
    if "error" in answer:
        at = f"{source}:{answer['line']}" if answer["line"] else str(source)
        raise UserError([Problem(answer["error"], at, answer["hint"])])
    return answer


def _end(child: subprocess.Popen[str]) -> None:
    """End the child and whatever it has started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
