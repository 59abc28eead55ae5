"""Read the arguments that a training program's own parser declares, in a child process, and cache them.

A cache entry is valid for one program file and one Python version, as long as the program and every file of
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
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flagscale.config.catalog import Option, catalog_of
from flagscale.config.entrypoint import SOURCE_ROOT
from flagscale.errors import Problem, UserError
from flagscale.files import cache_file, write_atomic
from flagscale.run.failure import how_it_ended

TIME_LIMIT = 20.0
"""Seconds that a program has to be imported and to add its arguments."""

_START_LIMIT = 20.0
"""Seconds more that the child process has to start, on a machine that is busy with others."""

_FORMAT = 2
"""The format of a cache entry; entries of another format are not read."""


def own_arguments(entrypoint: str, source: Path, line: int, where: str) -> dict[str, Option]:
    """Return the arguments that a program's `add_arguments` adds, by name without dashes.

    Raises:
        UserError: if the program fails or takes longer than `TIME_LIMIT`. It names the line that
            failed, else the `line` of `add_arguments`, else `where`, the place that names the program.
    """
    path = cache_of(source)
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        entry = json.loads(path.read_text(encoding="utf-8"))
        if str(source.resolve()) in entry["files"] and _hashes(entry["files"]) == entry["files"]:
            return _options(entry["arguments"])
    answer = _ask(entrypoint, source, line, where)
    options = _options(answer["arguments"])
    entry = {"files": _hashes(answer["files"]), "arguments": answer["arguments"]}
    with suppress(OSError):  # a home that is not writable only costs time
        write_atomic(path, json.dumps(entry, indent=1))
    return options


def cache_of(source: Path) -> Path:
    """Return the cache file of a program's arguments: in the user's cache, not in a run directory."""
    return cache_file("programs", f"{_FORMAT} {sys.version} {source.resolve()}")


def _hashes(files: Mapping[str, str] | list[str]) -> dict[str, str]:
    return {file: hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files}


def _options(arguments: Mapping[str, Any]) -> dict[str, Option]:
    return dict(catalog_of({"engine": "", "version": "", "arguments": arguments}).options)


def _ask(entrypoint: str, source: Path, line: int, where: str) -> dict[str, Any]:
    """Start the child process (`describe_program`) and return its answer."""
    paths = [str(SOURCE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    # -P: the ranks do not see the working directory unless the program is a module, and then it is added.
    command = [sys.executable, "-P", "-B", "-m", "flagscale.engines.megatron.describe_program"]
    begun = time.monotonic()
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
        # The child ends itself and prints where it was; this is for one that cannot even do that.
        printed, complained = child.communicate(timeout=TIME_LIMIT + _START_LIMIT)
    except subprocess.TimeoutExpired:
        _end(child)
        printed, complained = child.communicate()
    finally:
        _end(child)
    if not printed and time.monotonic() - begun >= TIME_LIMIT:
        at = re.search(rf'File "{re.escape(str(source))}", line (\d+)', complained)
        what = f"is still running {TIME_LIMIT:g} s after it was imported to read its arguments"
        hint = 'put its work under `if __name__ == "__main__":`'
        raise UserError([Problem(f"`{entrypoint}` {what}", f"{source}:{at[1]}" if at else where, hint)])
    try:
        answer: dict[str, Any] = json.loads(printed)
    except ValueError:
        what = f"`{entrypoint}` {how_it_ended(child.returncode)} when it was imported to read its arguments"
        last = complained.strip().splitlines()[-1:]
        raise UserError([Problem(": ".join([what, *last]), where)]) from None
    if "error" in answer:
        raise UserError([Problem(answer["error"], f"{source}:{answer['line'] or line}", answer["hint"])])
    return answer


def _end(child: subprocess.Popen[str]) -> None:
    """End the child and every process that it has started."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
