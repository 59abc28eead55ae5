"""Families from outside, converted there and back: GPT-2, whose shapes differ from Llama's, and StableLM."""

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
GPT2 = {"n_layer": 2, "n_embd": 64, "n_head": 4, "n_positions": 64}
DROPOUT = {"attn_pdrop": 0.125, "resid_pdrop": 0.25, "embd_pdrop": 0.25}
STABLELM = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.5,
}
THERE_AND_BACK = """
from megatron.flagscale.convert.convert import convert
print(convert("hf", "megatron", overwrite=True).model.family)
convert("megatron", "back", overwrite=True)
"""


@pytest.fixture(scope="module")
def installed(install: Callable[[str], Installed]) -> Installed:
    return install("family")


def make(folder: Path, architecture: str, **settings: object) -> None:
    """Save a small random model; norms and biases are random too, so that swapped ones are noticed."""
    import torch
    import transformers

    torch.manual_seed(0)
    model_class = getattr(transformers, architecture)
    tokens = {"vocab_size": 250, "bos_token_id": 1, "eos_token_id": 2}
    model = model_class(model_class.config_class(**tokens, initializer_range=0.1, **settings))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.2)
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("family", "architecture", "settings"),
    [
        ("gpt2", "GPT2LMHeadModel", {**GPT2, **DROPOUT, "n_inner": 96, "tie_word_embeddings": False}),
        ("stablelm", "StableLmForCausalLM", STABLELM),
    ],
)
def test_a_round_trip_of_a_family_from_outside_is_bitwise_equal(
    family: str, architecture: str, settings: dict[str, object], installed: Installed
) -> None:
    source, back = installed.folder / "hf", installed.folder / "back"
    make(source, architecture, **settings)
    done = installed.python("-c", THERE_AND_BACK)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{family}\n"
    assert same(source, back)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, back))
    for name in settings:
        assert after[name] == (before | before.get("rope_parameters", {}))[name]


def test_the_keys_of_a_family_from_outside_are_checked_too(installed: Installed, tmp_path: Path) -> None:
    make(tmp_path / "hf", "GPT2LMHeadModel", **GPT2, embd_pdrop=0.5, scale_attn_by_inverse_layer_idx=True)
    done = installed.python(CONVERT, "--load", str(tmp_path / "hf"), "--save", str(tmp_path / "megatron"))
    assert done.returncode == 2
    assert "`embd_pdrop` is 0.5; only 0.1, as `resid_pdrop`, is supported" in done.stderr
    assert "`scale_attn_by_inverse_layer_idx` is True; only False is supported" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)  # a busy machine imports the engine slowly
def test_megatron_and_transformers_agree_on_the_logits(installed: Installed, tmp_path: Path) -> None:
    make(tmp_path / "hf", "GPT2LMHeadModel", **GPT2, activation_function="gelu")
    words = ("--load", str(tmp_path / "hf"), "--save", str(tmp_path / "megatron"), "--verify-logits")
    done = installed.python(CONVERT, *words, timeout=300)
    assert done.returncode == 0, done.stderr
    assert ": gpt2, 28 tensors, " in done.stdout
    assert "note: logits of Megatron and transformers differ by" in done.stderr


def test_the_family_is_listed_for_an_unknown_architecture(installed: Installed, tmp_path: Path) -> None:
    source = tmp_path / "hf"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHead"]}))
    refused = installed.python(CONVERT, "--load", str(source), "--save", str(tmp_path / "target"))
    assert refused.returncode == 2
    assert "the architecture GPT2LMHead is not supported; known: " in refused.stderr
    assert "did you mean `GPT2LMHeadModel`?" in refused.stderr
    assert "gpt2" in installed.python(CONVERT, "--help").stdout
    with pytest.raises(UserError) as caught:  # here it is not installed
        convert(source, tmp_path / "target")
    assert "GPT2LMHeadModel" not in str(caught.value)
