"""Model folders are checked without loading them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale.checks.model_folder import folder_violations, is_path, misspelt_architecture, problems
from flagscale.engines.vllm.catalog import vllm_catalog

Write = Callable[..., Path]


def test_a_sound_folder(tmp_path: Path, write_model: Write) -> None:
    assert list(problems(write_model(tmp_path / "m"))) == []


def test_missing_files_are_reported_at_once(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    reported = "\n".join(problems(tmp_path / "m"))
    assert "no config.json" in reported
    assert "contains no weights" in reported
    assert "contains no tokenizer" in reported
    assert list(problems(tmp_path / "m", load_format="dummy", tokenizer=False)) == [
        f"{tmp_path / 'm'}: not a model folder (no config.json)"
    ]
    assert list(problems(tmp_path / "absent")) == [
        f"{tmp_path / 'absent'}: no such model folder (a name on a model hub has an owner: OWNER/NAME)"
    ]


@pytest.mark.parametrize("cut", [1, 20, 75])
def test_a_truncated_shard(tmp_path: Path, write_model: Write, cut: int) -> None:
    shard = write_model(tmp_path / "m") / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-cut])
    (reported,) = problems(tmp_path / "m")
    assert reported.startswith(str(shard))


def test_a_shard_of_another_format(tmp_path: Path, write_model: Write) -> None:
    shard = write_model(tmp_path / "m") / "model.safetensors"
    shard.write_bytes((5).to_bytes(8, "little") + b"[1,2]")
    assert list(problems(tmp_path / "m")) == [f"{shard}: its header cannot be read"]


def test_a_missing_shard_of_the_index(tmp_path: Path, write_model: Write) -> None:
    folder = write_model(tmp_path / "m")
    names = {"a": "model.safetensors", "b": "model-2.safetensors", "c": "model-3.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert list(problems(folder)) == [
        f"{folder}: missing shard model-2.safetensors and 1 more, which model.safetensors.index.json names; "
        "if model.safetensors is the model, remove model.safetensors.index.json"
    ]
    (folder / "model.safetensors.index.json").write_text("{")
    assert "cannot be read" in next(problems(folder))


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_broken_config(tmp_path: Path, write_model: Write, text: str) -> None:
    (write_model(tmp_path / "m") / "config.json").write_text(text)
    (reported,) = problems(tmp_path / "m")
    assert "config.json" in reported


def test_names_on_a_hub_are_not_checked() -> None:
    assert not is_path("owner/name")
    assert not is_path("s3://bucket/a/b")
    assert list(folder_violations({"model": "owner/name"})) == []
    assert [dest for dest, _ in folder_violations({"model": "./absent", "tokenizer": "/absent"})] == [
        "model",
        "tokenizer",
    ]


def test_paths_that_the_engine_would_not_find(tmp_path: Path, write_model: Write) -> None:
    assert [dest for dest, _ in folder_violations({"model": "~/m"})] == ["model"]
    folder = write_model(tmp_path / "m")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(tmp_path / "absent")
    assert list(problems(folder)) == [f"{folder / 'model.safetensors'}: no such file"]


def test_mistrals_own_format(tmp_path: Path, write_model: Write) -> None:
    folder = write_model(tmp_path / "m")
    (folder / "config.json").rename(folder / "params.json")
    assert list(problems(folder)) == []


def test_paths_are_relative_to_the_job(tmp_path: Path, write_model: Write) -> None:
    write_model(tmp_path / "here" / "m")
    assert list(folder_violations({"model": "./m"}, tmp_path / "here")) == []
    assert list(folder_violations({"model": "./m"}, tmp_path)) != []


def test_a_generating_model_without_an_output_layer(
    tmp_path: Path, write_model: Write, write_tensors: Callable[..., None]
) -> None:
    """vLLM 0.32 served it with whatever memory held, and transformers 5.19 with random values."""
    folder = write_model(tmp_path / "m", model_type="llama")
    write_tensors(folder / "model.safetensors", **{"model.embed_tokens.weight": b"1234"})
    (reported,) = problems(folder)
    assert "contains no output layer (lm_head.weight), and `tie_word_embeddings` is not true" in reported
    write_model(tmp_path / "m", model_type="llama", tie_word_embeddings=True)
    write_tensors(folder / "model.safetensors", **{"model.embed_tokens.weight": b"1234"})
    assert list(problems(folder)) == []
    write_model(tmp_path / "m", model_type="unheard_of")  # its default is unknown
    write_tensors(folder / "model.safetensors", **{"model.embed_tokens.weight": b"1234"})
    assert list(problems(folder)) == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LlamaForCausalLm", "LlamaForCausalLM"),
        ("LLaMaForCausalLm", "LLaMAForCausalLM"),
        ("GPT2LMHead", "GPT2LMHeadModel"),
        ("Qwen3_MoeForCausalLM", ""),
        ("Qwen9ForCausalLM", ""),
        ("MinstralForCausalLM", ""),
        ("LlamaForEverything", ""),
    ],
)
def test_an_architecture_is_hinted_at_only_within_its_family(name: str, meant: str) -> None:
    hint = f"did you mean `{meant}`?" if meant else ""
    assert misspelt_architecture(name, vllm_catalog().architectures) == hint


def test_no_architecture_of_vllm_is_taken_for_another_family() -> None:
    known = vllm_catalog().architectures
    for name in known[::5]:
        hint = misspelt_architecture(name, [other for other in known if other != name])
        family = name.lower().partition("for")[0].partition("lmhead")[0].removesuffix("model")
        assert not hint or hint.lower().startswith(f"did you mean `{family}"), name
