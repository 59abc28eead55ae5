"""A model family from outside, of other shapes than Llama's: GPT-2, there and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale.errors import UserError
from flagscale_testing.conversion import same
from megatron.flagscale.convert.convert import convert
from tests.outside.conftest import ROOT, Installed

CONVERT = str(ROOT / "tools" / "checkpoint" / "convert.py")


@pytest.fixture(scope="module")
def installed(install: Callable[[str], Installed]) -> Installed:
    return install("family")


def make(folder: Path, **settings: object) -> Path:
    """Save a small random GPT-2; norms and biases are random too, or a mix-up of them would not show."""
    import torch
    import transformers

    torch.manual_seed(0)
    sizes = {
        "n_layer": 2,
        "n_embd": 64,
        "n_head": 4,
        "n_positions": 64,
        "vocab_size": 250,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    config = transformers.GPT2Config(**sizes, initializer_range=0.1, **settings)
    model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.2)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"activation_function": "gelu"}, ["--verify-logits"]),
        ({"activation_function": "gelu_new", "n_inner": 96, "tie_word_embeddings": False}, []),
    ],
    ids=["GELU by erf", "GELU by tanh, untied"],
)
def test_a_family_from_outside_goes_there_and_back(
    settings: dict[str, object], options: list[str], installed: Installed, tmp_path: Path
) -> None:
    source = make(tmp_path / "hf", **settings)
    there = installed.python(
        CONVERT, "--load", str(source), "--save", str(tmp_path / "megatron"), *options, timeout=240
    )
    assert there.returncode == 0, there.stderr
    assert ": gpt2, " in there.stdout
    assert ("note: logits of Megatron and transformers differ by" in there.stderr) == bool(options)
    back = installed.python(CONVERT, "--load", str(tmp_path / "megatron"), "--save", str(tmp_path / "back"))
    assert back.returncode == 0, back.stderr
    assert same(source, tmp_path / "back")
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "back")
    )
    assert {name for name, value in before.items() if value and after.get(name, value) != value} == set()


def test_a_message_about_another_architecture_names_it(installed: Installed, tmp_path: Path) -> None:
    source = tmp_path / "hf"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHead"]}))
    refused = installed.python(CONVERT, "--load", str(source), "--save", str(tmp_path / "target"))
    assert refused.returncode == 2
    assert "the architecture GPT2LMHead cannot be converted; known: GPT2LMHeadModel, " in refused.stderr
    assert "did you mean `GPT2LMHeadModel`?" in refused.stderr
    assert "gpt2" in installed.python(CONVERT, "--help").stdout
    with pytest.raises(UserError) as caught:  # here it is not installed
        convert(source, tmp_path / "target")
    assert "GPT2LMHeadModel" not in str(caught.value)
