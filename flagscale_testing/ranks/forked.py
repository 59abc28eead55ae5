"""Training runs whose ranks are forks of a process that has imported everything: a fork server.

It imports torch and the engine once, at the first requested run, and ends with the process that requested it.
Starting a rank takes a fraction of a second instead of ten seconds.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from flagscale_testing.ports import free_port
from flagscale_testing.ranks.training import PATIENCE, ROOT, environment, read_metrics


@dataclass(frozen=True)
class Run:
    """One training run: the number of ranks, and the arguments of the worker or of another `module:function`.

    `mutation` names a function that each rank calls first: it breaks something that a test must notice, or
    makes the engine record what it does.
    """

    name: str
    ranks: int
    argv: tuple[str, ...]
    program: str = "megatron.flagscale.program:train"
    mutation: str = ""


@dataclass(frozen=True)
class Curve:
    """The logged values of a run, per iteration; `error` is empty if the run succeeded."""

    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    error: str = ""


def run_all(runs: Iterable[Run], folder: Path) -> dict[str, Curve]:
    """Execute the runs one after another; each leaves its metrics and output in `folder/NAME`."""
    asked = [*runs]
    server = _fork_server()
    assert server.stdin
    assert server.stdout
    print(json.dumps([str(folder), [asdict(run) for run in asked]]), file=server.stdin, flush=True)
    if not server.stdout.readline():
        raise RuntimeError(f"the fork server ended with {server.wait()}")
    return {run.name: read_curve(folder / run.name) for run in asked}


@functools.cache
def _fork_server() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "flagscale_testing.ranks.forked"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment(), cwd=ROOT)


def read_curve(folder: Path) -> Curve:
    """Return what a run logged in its folder."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "lm_loss" in line]
    failed = (folder / "failed").read_text() if (folder / "failed").exists() else ""
    return Curve(tuple(line["lm_loss"] for line in lines), tuple(line["grad_norm"] for line in lines), failed)


def main() -> None:
    """Import everything once, then execute the runs that each line of standard input describes."""
    from megatron.flagscale.supervision import die_with_parent

    die_with_parent()  # the end of standard input would be noticed only after the runs of a line
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the engine's output must not mix with our replies
    _import_all()
    _remember_docstrings()
    gc.collect()
    gc.freeze()  # or the first collection in each rank would copy all of this memory
    for line in sys.stdin:
        folder, runs = json.loads(line)
        for fields in runs:
            _train(Run(**fields), Path(folder))
        print("done", file=answers, flush=True)


def _import_all() -> None:
    from megatron.flagscale.bootstrap import patch_engine

    patch_engine()
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.tokenizers.text.libraries  # also imports transformers
    import megatron.training
    import megatron.training.argument_utils
    import torch._dynamo  # noqa: F401

    import megatron.flagscale.args
    import megatron.flagscale.data
    import megatron.flagscale.hetero.finalize
    import megatron.flagscale.hetero.p2p
    import megatron.flagscale.initialization
    import megatron.flagscale.layers.spec
    import megatron.flagscale.program  # noqa: F401


def _remember_docstrings() -> None:
    """Read the texts of the engine's options from its sources once; each rank builds four parsers."""
    from megatron.training.argument_utils import ArgumentGroupFactory

    from megatron.flagscale.args import engine_parser

    read: Callable[..., dict[str, str]] = ArgumentGroupFactory._get_field_docstrings
    known: dict[type, dict[str, str]] = {}

    def remembered(self: object, group: type) -> dict[str, str]:
        if group not in known:
            known[group] = read(self, group)
        return known[group]

    ArgumentGroupFactory._get_field_docstrings = remembered
    engine_parser()


def _train(run: Run, parent: Path) -> None:
    folder = parent / run.name
    folder.mkdir(parents=True)
    if code := _fork_ranks(run, folder):
        output = (folder / "output").read_text(errors="replace")
        (folder / "failed").write_text(f"exit code {code}\n{output[-4000:]}")


def _fork_ranks(run: Run, folder: Path) -> int:
    """Run all ranks to their end; return the first nonzero exit code, or -9 if a rank hangs."""
    port = free_port()
    ranks = {_fork_rank(run, rank, port, folder) for rank in range(run.ranks)}
    deadline = time.monotonic() + PATIENCE
    code = 0
    while ranks:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ranks.discard(pid)
            code = code or os.waitstatus_to_exitcode(status)
        elif code or time.monotonic() > deadline:
            for left in ranks:
                os.kill(left, signal.SIGKILL)
                os.waitpid(left, 0)
            return code or -signal.SIGKILL
        else:
            time.sleep(0.01)
    return code


def _fork_rank(run: Run, rank: int, port: int, folder: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        from megatron.flagscale.supervision import die_with_parent

        die_with_parent()
        output = os.open(folder / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(run.ranks),
            "LOCAL_WORLD_SIZE": str(run.ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        if run.mutation:
            _named(run.mutation)()
        _named(run.program)([*run.argv, "--metrics-file", str(folder / "metrics.jsonl")])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _named(function: str) -> Callable[..., object]:
    module, _, name = function.partition(":")
    found: Callable[..., object] = getattr(importlib.import_module(module), name)
    return found


if __name__ == "__mp_main__":
    # The process that a rank's checkpoint writer spawns imports this again; it could outlive its rank.
    from megatron.flagscale.supervision import die_with_parent

    die_with_parent()

if __name__ == "__main__":
    main()
