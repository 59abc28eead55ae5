"""The arguments of the model in a Hugging Face folder, which a child process reads from its `config.json`.

The conversion knows the families of models, and belongs to the data plane.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flagscale.checks.pretrained import CONFIG
from flagscale.config.entrypoint import SOURCE_ROOT
from flagscale.errors import Problem, UserError
from flagscale.run.failure import how_it_ended

_READER = "megatron.flagscale.convert.hf_arguments"
_TIMEOUT = 60.0
"""Seconds: reading takes a fraction of one."""


def arguments_of(folder: Path) -> Mapping[str, Any]:
    """Return the arguments (by dest) that the checkpoint of this folder's conversion would hold.

    Raises:
        UserError: the model cannot be converted; lists all reasons.
    """
    stamp = os.stat(folder / CONFIG).st_mtime_ns
    answer = _ask(str(folder.absolute()), stamp)
    if "problems" in answer:
        raise UserError([Problem(*problem) for problem in answer["problems"]])
    arguments: dict[str, Any] = answer["arguments"]
    return arguments


@functools.cache
def _ask(folder: str, stamp: int) -> dict[str, Any]:
    """Ask once per process, while the file has the same `stamp`: the rules are tried with several layouts."""
    paths = [str(SOURCE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-P", "-B", "-m", _READER, folder]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=_TIMEOUT
        )
    except subprocess.TimeoutExpired:
        what = f"{folder}: its {CONFIG} could not be read within {_TIMEOUT:g} s"
        return {"problems": [[what, "", ""]]}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        what = f"{folder}: reading its {CONFIG} {how_it_ended(done.returncode)}"
        return {"problems": [[": ".join([what, *last]), "", ""]]}
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
