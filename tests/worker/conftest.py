"""Real runs of the training worker on CPU: tiny models, a few ranks, each run shared by as many tests as possible."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SAVE_INTERVAL = 3
TRAIN_ITERS = 6

MODEL = """
    --num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 64 --max-position-embeddings 64
    --normalization RMSNorm --swiglu --position-embedding-type rope --disable-bias-linear
    --untie-embeddings-and-output-weights --attention-dropout 0 --hidden-dropout 0
    --micro-batch-size 2 --global-batch-size 8 --lr 1e-2 --lr-decay-style constant --weight-decay 0.1
    --use-distributed-optimizer --log-interval 1 --eval-iters 0
""".split()
MOCK_DATA = "--mock-data --tokenizer-type NullTokenizer --vocab-size 255".split()


@dataclass(frozen=True)
class Ended:
    """A run that is over."""

    code: int
    output: str
    failure: dict[str, Any] | None
    metrics: list[dict[str, Any]]

    def losses(self) -> dict[int, float]:
        return {line["iteration"]: line["lm_loss"] for line in self.metrics if "lm_loss" in line}


def environment(**more: str) -> dict[str, str]:
    """The environment a supervisor gives a run."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("COV_", "PYTEST_"))}
    return {**inherited, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}


def torchrun(ranks: int, *argv: str) -> list[str]:
    """The command of one host: our torchrun, on a port that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = ["--nproc-per-node", str(ranks), "--master-addr", "127.0.0.1", "--master-port", str(port)]
    return [sys.executable, "-m", "megatron.flagscale.torchrun", *where, *argv]


def train(folder: Path, ranks: int, *argv: str, timeout: float = 150) -> Ended:
    """Train in a folder, to the end; metrics, failure file and output are read back from it."""
    folder.mkdir(parents=True, exist_ok=True)
    failure, metrics = folder / "failure.json", folder / "metrics.jsonl"
    command = torchrun(ranks, "-m", "megatron.flagscale.train_gpt", *MODEL, "--metrics-file", str(metrics), *argv)
    with (folder / "output").open("w+") as output:
        code = subprocess.run(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment(FLAGSCALE_FAILURE_FILE=str(failure)),
            timeout=timeout,
            check=False,
        ).returncode
    return Ended(
        code,
        (folder / "output").read_text(),
        json.loads(failure.read_text()) if failure.exists() else None,
        read_metrics(metrics),
    )


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every line of a metrics file; a line that is no JSON fails the test."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of real data: a small byte-level tokenizer folder and `.bin/.idx` files written by the engine."""
    import numpy
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("corpus")
    texts = [path.read_text() for path in sorted((ROOT / "megatron" / "flagscale").glob("*.py"))] * 3
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=320, special_tokens=["<|endoftext|>"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(folder / "tokenizer")
    builder = IndexedDatasetBuilder(str(folder / "text.bin"), dtype=numpy.uint16)
    for text in texts:
        ids = [*tokenizer.encode(text).ids, 0]
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(str(folder / "text.idx"))
    return [
        *("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(folder / "tokenizer")),
        *("--data-path", str(folder / "text"), "--split", "90,10,0", "--data-cache-path", str(folder / "cache")),
    ]


def saving(folder: Path) -> list[str]:
    """The arguments of a run that saves to, and resumes from, a folder."""
    return [
        *("--train-iters", str(TRAIN_ITERS), "--save", str(folder), "--load", str(folder)),
        *("--save-interval", str(SAVE_INTERVAL)),
    ]


@dataclass(frozen=True)
class Base:
    """The uninterrupted run that others continue or repeat."""

    folder: Path
    ended: Ended


TP2_PP2 = ["--tensor-model-parallel-size", "2", "--pipeline-model-parallel-size", "2"]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Base:
    """TP2 x PP2 with the distributed optimizer on real data, saved at iterations 3 and 6, evaluated once."""
    folder = tmp_path_factory.mktemp("base")
    evaluating = ["--eval-interval", "3", "--eval-iters", "1"]
    ended = train(folder, 4, *TP2_PP2, *corpus, *saving(folder / "checkpoints"), *evaluating)
    assert ended.code == 0, ended.output[-4000:]
    return Base(folder, ended)


@pytest.fixture
def copy_of_base(base: Base, tmp_path: Path) -> Callable[[], Path]:
    """Make a copy of the base run's folder, to be damaged and continued."""
    import shutil

    def copy() -> Path:
        return Path(shutil.copytree(base.folder, tmp_path / "run"))

    return copy
