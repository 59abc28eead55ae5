"""Aquila as BAAI publishes it: `AquilaForCausalLM` with code of its own, which is Llama by another name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagscale.errors import UserError
from flagscale_testing.conversion import same, tensors_of
from megatron.flagscale.convert.convert import convert
from megatron.flagscale.convert.hf_config import read_config

PUBLISHED: dict[str, Any] = {
    "architectures": ["AquilaForCausalLM"],
    "model_type": "aquila",
    "auto_map": {
        "AutoConfig": "configuration_aquila.AquilaConfig",
        "AutoModelForCausalLM": "modeling_aquila.AquilaForCausalLM",
    },
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 250,
    "bos_token_id": 100,
    "eos_token_id": 101,
    "pad_token_id": 0,
    "hidden_act": "silu",
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}


@pytest.fixture
def published(models: Callable[[str], Path], tmp_path: Path) -> Path:
    """A folder in the published form, whose code must never run."""
    folder = Path(shutil.copytree(models("Aquila") / "hf", tmp_path / "published"))
    (folder / "generation_config.json").unlink()
    (folder / "config.json").write_text(json.dumps(PUBLISHED))
    for name in ("configuration_aquila.py", "modeling_aquila.py"):
        (folder / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nraise RuntimeError('code ran')\n")
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def test_there_and_back_in_the_published_form(published: Path, tmp_path: Path) -> None:
    made = convert(published, tmp_path / "megatron")
    assert made.model.family == "aquila"
    back = convert(tmp_path / "megatron", tmp_path / "back", family="aquila")
    assert same(published, tmp_path / "back")
    found = config_of(tmp_path / "back")
    assert {key: found.get(key) for key in PUBLISHED if key != "auto_map"} == {
        key: value for key, value in PUBLISHED.items() if key != "auto_map"
    }
    assert "auto_map" not in found
    assert not list((tmp_path / "back").glob("*.py"))
    (notice,) = (one for one in back.notices if "BAAI" in one)
    assert (
        "vLLM opens it with FlagScale's plugin, and transformers only with BAAI's code, which is never"
        in notice
    )
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_is_exported_as_a_llama_by_default(published: Path, tmp_path: Path) -> None:
    convert(published, tmp_path / "megatron")
    made = convert(tmp_path / "megatron", tmp_path / "back")
    found = config_of(tmp_path / "back")
    assert (found["architectures"], found["model_type"]) == (["LlamaForCausalLM"], "llama")
    assert [found[f"{name}_token_id"] for name in ("bos", "eos", "pad")] == [100, 101, 0]
    assert same(published, tmp_path / "back")
    assert not any("BAAI" in one for one in made.notices)


def test_the_form_of_a_folder_can_be_changed(published: Path, tmp_path: Path) -> None:
    convert(published, tmp_path / "same", to="huggingface")
    convert(published, tmp_path / "llama", to="huggingface", family="llama")
    convert(tmp_path / "llama", tmp_path / "aquila", to="huggingface", family="aquila")
    forms = [config_of(tmp_path / name)["architectures"][0] for name in ("same", "llama", "aquila")]
    assert forms == ["AquilaForCausalLM", "LlamaForCausalLM", "AquilaForCausalLM"]
    assert all(same(published, tmp_path / name) for name in ("same", "llama", "aquila"))


def test_the_special_tokens_of_the_model_are_kept(published: Path, tokenizer: Path, tmp_path: Path) -> None:
    """transformers ends a text at these, and not at the tokenizer's, unless told otherwise.

    Opening the tokenizer by its folder, it would ask at the terminal whether to run the folder's code.
    """
    for file in tokenizer.iterdir():
        shutil.copyfile(file, published / file.name)
    convert(published, tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "back", family="aquila")
    found = config_of(tmp_path / "back")
    ids = {name: found[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    assert ids == {"bos_token_id": 100, "eos_token_id": 101, "pad_token_id": 0}
    assert json.loads((tmp_path / "back" / "generation_config.json").read_text()) == ids
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (tokenizer / "tokenizer.json").read_bytes()
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused_with_the_way_out(published: Path, tmp_path: Path) -> None:
    """BAAI's older folders hold nothing else; the class of Llama opens them without BAAI's code."""
    import torch
    import transformers

    torch.save(tensors_of(published), published / "pytorch_model.bin")
    (published / "model.safetensors").rename(tmp_path / "model.safetensors")
    with pytest.raises(UserError) as caught:
        convert(published, tmp_path / "megatron")
    assert "transformers.LlamaForCausalLM.from_pretrained(FOLDER" in str(caught.value)
    opened = transformers.LlamaForCausalLM.from_pretrained(published, dtype="auto")
    opened.save_pretrained(tmp_path / "again")
    convert(tmp_path / "again", tmp_path / "megatron")
    convert(tmp_path / "megatron", tmp_path / "back", family="aquila")
    assert same(tmp_path, tmp_path / "back")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("architecture", ["AquilaForCausalLM", "AquilaModel"])
def test_every_published_name_is_known(architecture: str) -> None:
    config = {**PUBLISHED, "architectures": [architecture]}
    assert read_config(config, "here").family == "aquila"
    assert read_config(config, "here", "aquila").family == "aquila"
    assert read_config(config, "here", "llama").family == "llama"
    named = {key: value for key, value in config.items() if key != "architectures"}
    assert read_config(named, "here").family == "aquila"


@pytest.mark.parametrize(
    ("changes", "family", "message"),
    [
        ({"architectures": ["AquilaForCausalM"]}, None, "did you mean `AquilaForCausalLM`?"),
        ({}, "qwen3", "the model is AquilaForCausalLM, not qwen3"),
        ({"model_type": "llama"}, None, "`model_type` is 'llama', but AquilaForCausalLM has 'aquila'"),
        ({"rms_norm_eps": None}, None, "`rms_norm_eps` is missing or null"),
        ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, None, "rotary scaling 'longrope'"),
    ],
)
def test_what_is_not_an_aquila(changes: dict[str, Any], family: str | None, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_config({**PUBLISHED, **changes}, "here", family)
    assert message in str(caught.value)


@pytest.mark.slow
def test_the_logits_of_the_published_form_are_compared(published: Path, tmp_path: Path) -> None:
    there = convert(published, tmp_path / "megatron", verify=True)
    back = convert(tmp_path / "megatron", tmp_path / "back", family="aquila", verify=True)
    for made in (there, back):
        assert any("logits of Megatron and transformers differ by" in one for one in made.notices)
    assert not (tmp_path / "ran").exists()
