"""Fixtures of the conversion tests: a small model of a family on disk, in both formats."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale_testing.conversion import CASES, make_model
from megatron.flagscale.convert.convert import convert


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a case, with `hf` and `megatron` in it; it is made once, do not change it."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("model")
            make_model(CASES[name], made[name] / "hf")
            convert(made[name] / "hf", made[name] / "megatron")
        return made[name]

    return folder


@pytest.fixture
def copy(models: Callable[[str], Path], tmp_path: Path) -> Callable[[str, str], Path]:
    """Return a copy of a case's folder in one format, which a test may damage."""

    def make(name: str, format: str) -> Path:
        return Path(shutil.copytree(models(name) / format, tmp_path / "copy"))

    return make


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word-level tokenizer with fewer tokens than the models have."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    words = {word: number for number, word in enumerate(["<|end|>", *map(str, range(99))])}
    plain = Tokenizer(models.WordLevel(words, unk_token="<|end|>"))
    PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|end|>").save_pretrained(folder)
    return folder
