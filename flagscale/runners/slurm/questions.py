"""Ask the hosts of an allocation by a step that answers and ends: questions and replies are files."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from shutil import rmtree

from flagscale.node.commands import QUESTIONS
from flagscale.run.rundir import RunDir
from flagscale.run.state import Reply
from flagscale.runners.slurm.allocation import Allocation
from flagscale.runners.slurm.commands import own_words
from flagscale.runners.slurm.srun import srun
from flagscale.values import Host, LaunchPlan

_ANSWERING = 60.0
"""Seconds that a step of questions may take, beyond the questions themselves."""
_TAIL = 4096


def ask_step(
    plan: LaunchPlan, allocation: Allocation, questions: Mapping[Host, list[str]], seconds: float
) -> dict[Host, Reply]:
    """Perform one node command per host by a step, within so many seconds; return the replies.

    Questions and replies are files below the run directory, or below its next folder that exists, which the
    hosts must see.
    """
    existing = next(path for path in (Path(plan.exp_dir), *Path(plan.exp_dir).parents) if path.is_dir())
    with _folder(existing) as folder:
        words = {str(host.rank): command for host, command in questions.items()}
        (folder / QUESTIONS).write_text(json.dumps(words), encoding="utf-8")
        shell = 'exec "$1" -m flagscale.node answer "$2" "$SLURM_NODEID"'
        with (folder / "output").open("ab") as output:
            step = ["sh", "-c", shell, "sh", plan.python, str(folder)]
            client = srun(plan, allocation, "flagscale-question", step, output)
        try:
            client.wait(_ANSWERING + seconds)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if client.poll() is None:
                client.terminate()  # srun ends its tasks
                client.wait()
        said = own_words((folder / "output").read_text(encoding="utf-8", errors="replace"))[-_TAIL:]
        return {host: _answer(folder, host, said) for host in questions}


def _answer(folder: Path, host: Host, said: str) -> Reply:
    try:
        reply: Reply = json.loads((folder / f"{host.rank}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"ok": False, "message": f"it has not answered; srun: {said or 'it printed nothing'}"}
    return reply


@contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """Make a folder that is removed at the end. Raises FlagScaleError if it cannot be made."""
    path = parent / f".flagscale-{token_hex(8)}"
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise RunDir(parent).unwritable(error) from None
    try:
        yield path
    finally:
        rmtree(path, ignore_errors=True)
