"""Train one small model under many parallel layouts, each rank a fork of a process that has all imports.

Used as a module (`run_all`), the work is done by one subprocess, the nursery: it imports torch and the engine
once, then forks the ranks of one layout after another. A rank costs a fraction of a second instead of ten.
"""

from __future__ import annotations

import importlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.worker.harness import PATIENCE, ROOT, environment, read_metrics

MUTATION = "LAYOUTS_MUTATION"
"""Environment: `module:function`, called in the nursery, that breaks something which a test must notice."""


@dataclass(frozen=True)
class Run:
    """One training: how many ranks, and the worker's arguments; or another program, as `module:function`."""

    name: str
    ranks: int
    argv: tuple[str, ...]
    program: str = "megatron.flagscale.train_gpt:train"


@dataclass(frozen=True)
class Curve:
    """What a run logged, iteration by iteration; `error` is empty when it ended well."""

    losses: tuple[float, ...]
    grad_norms: tuple[float, ...]
    error: str = ""


def run_all(runs: Iterable[Run], folder: Path) -> dict[str, Curve]:
    """Do the runs one after another below `folder`; each leaves its metrics and output in `folder/NAME`."""
    work = json.dumps([asdict(run) for run in runs])
    command = [sys.executable, "-m", "tests.worker.layouts", str(folder)]
    subprocess.run(command, input=work, text=True, env=environment(), cwd=ROOT, check=True)
    return {run["name"]: _curve(folder / run["name"]) for run in json.loads(work)}


def _curve(folder: Path) -> Curve:
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "lm_loss" in line]
    failed = (folder / "failed").read_text() if (folder / "failed").exists() else ""
    return Curve(tuple(line["lm_loss"] for line in lines), tuple(line["grad_norm"] for line in lines), failed)


def _nursery(folder: Path) -> None:
    """Import everything once, then fork the ranks of each run that is named on the standard input."""
    runs = [Run(**fields) for fields in json.load(sys.stdin)]
    from megatron.flagscale.platform import patch_engine

    patch_engine()
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.tokenizers.text.libraries  # with transformers
    import megatron.training
    import megatron.training.argument_utils
    import torch._dynamo  # noqa: F401

    import megatron.flagscale.args
    import megatron.flagscale.data
    import megatron.flagscale.hetero.finalize
    import megatron.flagscale.hetero.p2p
    import megatron.flagscale.initialization
    import megatron.flagscale.layers.spec
    import megatron.flagscale.train_gpt  # noqa: F401

    if mutation := os.environ.get(MUTATION):
        module, _, name = mutation.partition(":")
        getattr(importlib.import_module(module), name)()
    for run in runs:
        (folder / run.name).mkdir(parents=True)
        code = _fork_ranks(run, folder / run.name)
        if code:
            output = (folder / run.name / "output").read_text(errors="replace")
            (folder / run.name / "failed").write_text(f"exit code {code}\n{output[-4000:]}")


def _fork_ranks(run: Run, folder: Path) -> int:
    """Run all ranks of one layout to their end; the first exit code that is not zero, or -9 when it hangs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
        from megatron.flagscale.lifetime import die_with_parent

        module, _, name = run.program.partition(":")
        program = getattr(importlib.import_module(module), name)
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
        program([*run.argv, "--metrics-file", str(folder / "metrics.jsonl")])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@dataclass(frozen=True)
class Layout:
    """One way to spread a model over ranks; `model` names what is trained, which has its own reference."""

    name: str
    model: str
    ranks: int
    options: str

    def run(self, steps: int) -> Run:
        argv = (*MODELS[self.model], "--train-iters", str(steps), *shlex.split(self.options))
        return Run(self.name, self.ranks, argv)


COMMON = """
    --mock-data --tokenizer-type NullTokenizer --vocab-size 255 --seq-length 64 --max-position-embeddings 64
    --num-layers 4 --hidden-size 64 --num-attention-heads 4 --attention-dropout 0 --hidden-dropout 0
    --micro-batch-size 2 --global-batch-size 8 --lr 1e-3 --lr-decay-style constant
    --weight-decay 0.1 --log-interval 1 --eval-iters 0 --make-vocab-size-divisible-by 32
"""
GPT = "--position-embedding-type learned_absolute"
LLAMA = """--normalization RMSNorm --swiglu --position-embedding-type rope --disable-bias-linear
    --untie-embeddings-and-output-weights --group-query-attention --num-query-groups 2"""
MOE = """--num-experts 4 --moe-router-topk 2 --moe-router-load-balancing-type aux_loss
    --moe-aux-loss-coeff 0.01 --moe-ffn-hidden-size 96"""
PACKED = "--reset-position-ids --reset-attention-mask --eod-mask-loss"
MODELS: dict[str, Sequence[str]] = {
    name: shlex.split(f"{COMMON} {options}")
    for name, options in {
        "llama": LLAMA,
        "llama, 8 layers": f"{LLAMA} --num-layers 8",
        "gpt": GPT,
        "moe": f"{LLAMA} {MOE}",
        "moe unbalanced": f"{LLAMA} {MOE} --moe-router-load-balancing-type none --moe-aux-loss-coeff 0",
        "packed": f"{LLAMA} {PACKED}",
        "packed, per token": f"{LLAMA} {PACKED} --calculate-per-token-loss",
        "qk norm": f"{LLAMA} --qk-layernorm --apply-layernorm-1p",
        "shared": f"{LLAMA} {MOE} --moe-shared-expert-intermediate-size 48",
        "dropout": f"{LLAMA} --attention-dropout 0.1 --hidden-dropout 0.1",
        "llama bf16": f"{LLAMA} --bf16",
        "llama fp16": f"{LLAMA} --fp16 --initial-loss-scale 65536 --hysteresis 1",
    }.items()
}

TP2, PP2, CP2 = (f"--{kind}-parallel-size 2" for kind in ("tensor-model", "pipeline-model", "context"))


def references(layouts: Iterable[Layout]) -> list[Layout]:
    """The single-process run of each model that `layouts` name."""
    return [
        Layout(f"{model}, one process", model, 1, "") for model in dict.fromkeys(x.model for x in layouts)
    ]


@dataclass(frozen=True)
class Difference:
    """How far a layout's training is from one process: greatest differences over all iterations."""

    loss: float
    grad_norm: float
    error: str = ""

    def is_small(self, model: str) -> bool:
        rough = model.endswith("16")
        loss, norm = (5e-3, 5e-3) if rough else (2e-5, 1e-4)
        return not self.error and self.loss <= loss and self.grad_norm <= norm


def compare(layouts: Sequence[Layout], folder: Path, steps: int = 20) -> dict[str, Difference]:
    """Train every layout and its model's single process; each layout's difference from it."""
    runs = [layout.run(steps) for layout in (*references(layouts), *layouts)]
    curves = run_all(runs, folder)
    return {
        layout.name: _difference(curves[f"{layout.model}, one process"], curves[layout.name], steps)
        for layout in layouts
    }


def _difference(base: Curve, curve: Curve, steps: int) -> Difference:
    error = base.error or curve.error
    if error or not len(base.losses) == len(curve.losses) == steps:
        return Difference(float("inf"), float("inf"), error or "not every iteration was logged")
    loss = max(abs(a - b) for a, b in zip(base.losses, curve.losses, strict=True))
    norm = max(abs(a - b) / a for a, b in zip(base.grad_norms, curve.grad_norms, strict=True))
    return Difference(loss, norm)


if __name__ == "__mp_main__":
    # What a rank's checkpoint writer spawns imports this again; it would outlive a rank that ends at once.
    from megatron.flagscale.lifetime import die_with_parent

    die_with_parent()

if __name__ == "__main__":
    _nursery(Path(sys.argv[1]))
