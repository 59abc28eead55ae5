"""Whole, sharded and left-over weights in one folder: what both libraries read, or what to remove."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from flagscale.checks.weight_files import difference, transformers_reads, vllm_reads, weights_of
from flagscale_testing.weights import LISTINGS

Tensors = Callable[..., None]
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


@pytest.fixture
def folder(tmp_path: Path, write_tensors: Tensors) -> Path:
    """A sound model in two shards."""
    for tensor, name in zip("ab", SHARDS, strict=True):
        write_tensors(tmp_path / name, **{tensor: b"12"})
    write_index(tmp_path, dict(zip("ab", SHARDS, strict=True)))
    return tmp_path


def write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def reported(folder: Path, **config: object) -> str:
    """Return what is wrong, without the folder's name."""
    return "\n".join(weights_of(folder, config)[1]).replace(f"{folder}", "F")


def test_shards_and_their_index(folder: Path) -> None:
    stored, problems = weights_of(folder, {})
    assert problems == []
    assert {name: (one.file.name, one.size) for name, one in stored.items()} == {
        "a": (SHARDS[0], 2),
        "b": (SHARDS[1], 2),
    }


@pytest.mark.parametrize("name", LISTINGS)
def test_files_that_each_library_reads(name: str) -> None:
    case = LISTINGS[name]
    assert transformers_reads(case.listing) == frozenset(case.transformers)
    assert vllm_reads(case.listing) == frozenset(case.vllm)
    is_clear = not case.transformers or not case.vllm or case.transformers == case.vllm
    assert (difference(case.listing) == "") == is_clear


def test_a_whole_model_beside_shards(folder: Path, write_tensors: Tensors) -> None:
    write_tensors(folder / "model.safetensors", a=b"34", b=b"34")
    assert reported(folder) == (
        "F: transformers reads model.safetensors, but vLLM reads model-00001-of-00002.safetensors and 1 more "
        "(model.safetensors.index.json); keep one of them and remove the other"
    )


def test_an_older_sharding_is_ignored_beside_an_index_only(folder: Path, write_tensors: Tensors) -> None:
    write_tensors(folder / "model-00001-of-00003.safetensors", a=b"34")
    (folder / "model-00002-of-00003.safetensors").write_bytes(b"truncated")
    assert reported(folder) == ""
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "F: contains only 1 of the 3 shards model-*-of-00003.safetensors" in reported(folder)
    write_tensors(folder / "model-00002-of-00003.safetensors", c=b"34")
    write_tensors(folder / "model-00003-of-00003.safetensors", d=b"34")
    assert reported(folder) == (
        "F: model-00001-of-00002.safetensors and model-00001-of-00003.safetensors both hold a; "
        "remove what an earlier save left behind"
    )


def test_shards_without_their_index(folder: Path) -> None:
    """vLLM reads them and transformers refuses, so there is no doubt which weights they are."""
    (folder / "model.safetensors.index.json").unlink()
    assert reported(folder) == ""
    (folder / SHARDS[1]).unlink()
    assert reported(folder) == "F: contains only 1 of the 2 shards model-*-of-00002.safetensors"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "cannot be read (Expecting property name"),
        ("[]", "has no `weight_map` from tensors to files"),
        ("{}", "has no `weight_map`"),
        ('{"weight_map": {"a": 3}}', "has no `weight_map`"),
        ('{"weight_map": []}', "has no `weight_map`"),
        ('{"weight_map": {}}', "its `weight_map` is empty"),
        ("\x00", "cannot be read"),
    ],
)
def test_an_index_that_cannot_be_used(folder: Path, text: str, what: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)
    assert reported(folder).startswith(f"F/model.safetensors.index.json: {what}")


def test_an_index_that_does_not_fit_the_files(folder: Path, write_tensors: Tensors) -> None:
    write_index(folder, {"a": SHARDS[0], "b": "other.safetensors"})
    assert reported(folder) == "F: missing shard other.safetensors, which model.safetensors.index.json names"
    write_index(folder, {"a": SHARDS[0], "b": SHARDS[1], "c": SHARDS[1]})
    assert reported(folder) == "F/model.safetensors.index.json: lists c, which the files do not contain"
    write_index(folder, {"a": SHARDS[1], "b": SHARDS[0]})  # both libraries read each named file completely
    assert reported(folder) == ""
    write_tensors(folder / SHARDS[1], a=b"12", b=b"12")
    assert "both hold a" in reported(folder)


def test_other_files_beside_a_whole_model(tmp_path: Path, write_tensors: Tensors) -> None:
    write_tensors(tmp_path / "model.safetensors", a=b"12")
    (tmp_path / "pytorch_model.bin").touch()  # neither reads it
    assert reported(tmp_path) == ""
    write_tensors(tmp_path / "adapter_model.safetensors", c=b"12")
    more = (
        "F: vLLM would also read adapter_model.safetensors, which transformers ignores; remove adapter_model"
    )
    assert reported(tmp_path).startswith(more)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds an adapter (adapter_config.json), which transformers applies" in reported(tmp_path)


def test_a_file_that_only_transformers_would_choose(tmp_path: Path, write_tensors: Tensors) -> None:
    write_tensors(tmp_path / "chosen.safetensors", a=b"12")
    assert reported(tmp_path, transformers_weights="chosen.safetensors") == ""
    write_tensors(tmp_path / "model.safetensors", a=b"34")
    assert "would also read model.safetensors" in reported(
        tmp_path, transformers_weights="chosen.safetensors"
    )


@pytest.mark.parametrize("norm", [b"12", b"34"])
def test_mistral_publishes_its_models_twice(tmp_path: Path, write_tensors: Tensors, norm: bytes) -> None:
    """vLLM prefers Mistral's file: it is refused if the other one holds another model."""
    write_tensors(tmp_path / "model.safetensors", **{"model.norm.weight": norm, "q": b"12"})
    write_tensors(tmp_path / "consolidated.safetensors", **{"norm.weight": b"12", "wq": b"21"})
    differ = "F: transformers reads model.safetensors, but vLLM reads consolidated.safetensors"
    assert reported(tmp_path).startswith(differ) == (norm != b"12")
    if norm == b"12":
        assert weights_of(tmp_path, {})[0].keys() == {"model.norm.weight", "q"}


def test_a_file_that_was_not_downloaded(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "model.safetensors: only a Git LFS pointer; download the file itself" in reported(tmp_path)
