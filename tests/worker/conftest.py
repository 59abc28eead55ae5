"""Fixtures shared by the worker's tests: data, and a run that other tests continue."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale_testing.ranks.training import ROOT, TP2_PP2, Base, saving, train


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the arguments for real data: a small byte-level tokenizer and the engine's `.bin/.idx` files."""
    import numpy
    import torch
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("corpus")
    # 512 tokens need no padding, so every tensor parallel size has the same vocabulary.
    texts = [path.read_text() for path in sorted((ROOT / "megatron" / "flagscale").glob("*.py"))] * 3
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, vocab_size=512, special_tokens=["<|endoftext|>"])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>").save_pretrained(
        folder / "tokenizer"
    )
    builder = IndexedDatasetBuilder(str(folder / "text.bin"), dtype=numpy.uint16)
    for text in texts:
        ids = [*tokenizer.encode(text).ids, 0]
        builder.add_document(torch.tensor(ids), [len(ids)])
    builder.finalize(str(folder / "text.idx"))
    return [
        *("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(folder / "tokenizer")),
        *(
            "--data-path",
            str(folder / "text"),
            "--split",
            "90,10,0",
            "--data-cache-path",
            str(folder / "cache"),
        ),
    ]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, corpus: list[str]) -> Base:
    """Train TP2 x PP2 with the distributed optimizer on real data; save and evaluate every 3 iterations."""
    folder = tmp_path_factory.mktemp("base")
    evaluating = ["--eval-interval", "3", "--eval-iters", "1"]
    ended = train(folder, 4, *TP2_PP2, *corpus, *saving(folder / "checkpoints"), *evaluating)
    assert ended.code == 0, ended.output[-4000:]
    return Base(folder, ended)


@pytest.fixture
def copy_of_base(base: Base, tmp_path: Path) -> Callable[[], Path]:
    """Return a function that copies the base run's folder, to be damaged and continued."""

    def copy() -> Path:
        return Path(shutil.copytree(base.folder, tmp_path / "run"))

    return copy
