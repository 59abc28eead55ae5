"""Refused conversions report the reason in a short message and leave nothing behind."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from flagscale.errors import UserError
from flagscale.run.checkpoints import TRACKER
from flagscale.run.manifest import MANIFEST
from flagscale_testing.disk import small_file_system
from megatron.flagscale.convert.convert import convert
from megatron.flagscale.convert.upcycle import Upcycling

Copy = Callable[[str, str], Path]
MODEL = "Llama 2"


def refused(source: Path, **options: object) -> str:
    """Check that a conversion is refused and leaves nothing behind; return its message."""
    target = source.parent / "target"
    before = sorted(source.parent.iterdir())
    with pytest.raises(UserError) as caught:
        convert(source, target, **options)  # type: ignore[arg-type]
    assert sorted(source.parent.iterdir()) == before
    return str(caught.value)


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of a Hugging Face folder."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def test_a_missing_tensor_is_reported(copy: Copy) -> None:
    folder = copy(MODEL, "hf")
    rewrite(folder, lambda tensors: tensors.pop("model.layers.3.self_attn.k_proj.weight"))
    assert "1 of 39 tensors are missing: model.layers.3.self_attn.k_proj.weight" in refused(folder)


def test_an_extra_tensor_is_reported(copy: Copy) -> None:
    folder = copy(MODEL, "hf")
    rewrite(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}))
    message = refused(folder)
    assert "1 tensors do not belong to the family llama: model.layers.0.self_attn.q_proj.bias" in message


def test_a_wrong_shape_is_reported(copy: Copy) -> None:
    folder = copy(MODEL, "hf")
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(63)}))
    assert "model.norm.weight has shape [63], but config.json gives [64]" in refused(folder)


def test_all_differences_are_reported_at_once(copy: Copy) -> None:
    folder = copy(MODEL, "hf")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors["more.weight"] = tensors.pop("lm_head.weight").clone()
        tensors["model.norm.weight"] = torch.ones(63)

    rewrite(folder, change)
    assert refused(folder).count("\n") == 2


def test_layers_of_the_same_wrong_shape_are_one_mistake_that_names_missing_sizes(copy: Copy) -> None:
    folder = copy(MODEL, "hf")
    config = json.loads((folder / "config.json").read_text())
    del config["num_key_value_heads"]
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 8}))
    message = refused(folder)
    others = config["num_hidden_layers"] - 1
    for name in ("gate_proj", "up_proj", "down_proj"):
        assert message.count(f"{name}.weight (and {others} like it) has shape [") == 1
    assumed = f"`num_key_value_heads` {config['num_attention_heads']}"
    assert message.count(f"does not give these sizes, which have a default: {assumed}") == 1


def test_integer_weights_are_refused(copy: Copy) -> None:
    folder = copy(MODEL, "hf")
    rewrite(folder, lambda tensors: tensors.update({"model.norm.weight": torch.ones(64, dtype=torch.int8)}))
    assert "model.norm.weight: stored as I8; only F32, BF16, F16 are supported" in refused(folder)


def test_a_difference_of_many_tensors_takes_a_few_lines(copy: Copy) -> None:
    folder = copy(MODEL, "hf")

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for name in tensors:
            if "mlp" in name:
                tensors[name] = tensors[name].to(torch.float8_e4m3fn)
            elif "self_attn" in name:
                tensors[name] = tensors[name][:3]

    rewrite(folder, change)
    message = refused(folder)
    assert message.count("\n") == 4
    assert message.count("has shape [3, 64], but") == 3
    assert "4 more tensors have shapes that differ from config.json" in message
    assert "mlp.up_proj.weight, ...: stored as F8_E4M3" in message


def test_a_truncated_shard_is_reported(copy: Copy) -> None:
    folder = copy(MODEL, "hf")
    shard = folder / "model.safetensors"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 100)
    assert "model.safetensors: damaged or truncated" in refused(folder)


def test_a_missing_shard_is_reported(copy: Copy) -> None:
    folder = copy(MODEL, "hf")
    (folder / "model.safetensors").unlink()
    assert "contains no weights (no *.safetensors)" in refused(folder)
    (folder / "pytorch_model.bin").touch()
    message = refused(folder)
    assert "its weights are not in safetensors" in message
    assert 'transformers.LlamaForCausalLM.from_pretrained(FOLDER, dtype="auto").save_pretrained(' in message


def test_a_wrong_index_is_reported(copy: Copy) -> None:
    folder = copy(MODEL, "hf")
    index = {"weight_map": dict.fromkeys(("lm_head.weight", "nothing.weight"), "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "lists nothing.weight, which the files do not contain" in refused(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": []}', '{"weight_map": {}}'])
def test_an_index_that_cannot_be_used_is_reported(copy: Copy, text: str) -> None:
    folder = copy(MODEL, "hf")
    (folder / "model.safetensors.index.json").write_text(text)
    assert f"{folder / 'model.safetensors.index.json'}: " in refused(folder)


def test_whole_and_sharded_weights_in_one_folder_are_refused(copy: Copy, tmp_path: Path) -> None:
    """transformers would read the whole file, and vLLM the shards, which may hold another model."""
    folder = copy(MODEL, "hf")
    convert(folder, tmp_path / "sharded", to="huggingface", shard_bytes=100_000)
    for file in (tmp_path / "sharded").glob("model*"):
        shutil.copyfile(file, folder / file.name)
    message = refused(folder)
    assert "transformers reads model.safetensors, but vLLM reads model-00001-of-" in message
    assert "keep one of them and remove the other" in message


def test_an_unknown_architecture_is_refused(copy: Copy) -> None:
    folder = copy(MODEL, "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    assert "the architecture GPT2LMHeadModel is not supported" in refused(folder)


def test_a_model_that_is_not_of_the_requested_family_is_refused(copy: Copy) -> None:
    assert "the model is LlamaForCausalLM, not qwen3" in refused(copy(MODEL, "hf"), family="qwen3")


def test_invalid_json_in_the_configuration_is_reported(copy: Copy) -> None:
    folder = copy(MODEL, "hf")
    (folder / "config.json").write_text("{")
    assert "config.json: invalid JSON" in refused(folder)


def test_a_tied_model_with_a_different_output_is_not_tied(copy: Copy, tmp_path: Path) -> None:
    """transformers and vLLM both read it so."""
    folder = copy("Llama 3.2, tied", "hf")
    rewrite(folder, lambda tensors: tensors.update({"lm_head.weight": torch.ones(250, 64)}))
    converted = convert(folder, tmp_path / "target")
    assert not converted.model.tied
    assert any("lm_head.weight differs from the embedding" in notice for notice in converted.notices)
    convert(tmp_path / "target", tmp_path / "back")
    assert json.loads((tmp_path / "back" / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(
        load_file(tmp_path / "back" / "model.safetensors")["lm_head.weight"], torch.ones(250, 64)
    )


def test_a_tied_model_may_store_its_output_twice(copy: Copy, tmp_path: Path) -> None:
    folder = copy("Llama 3.2, tied", "hf")

    def repeat(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    rewrite(folder, repeat)
    assert convert(folder, tmp_path / "target").model.tied


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_checkpoint_is_refused(damage: str, copy: Copy) -> None:
    folder = copy(MODEL, "megatron")
    file = folder / "release" / "__0_0.distcp"
    if damage == "missing":
        file.unlink()
        assert "the checkpoint cannot be used: __0_0.distcp is missing" in refused(folder)
    else:
        with file.open("r+b") as opened:
            opened.truncate(1000)
        assert "__0_0.distcp has 1000 bytes instead of" in refused(folder)
        (folder / "release" / MANIFEST).unlink()
        assert "cannot be" in refused(folder)


def test_a_tensor_missing_from_a_checkpoint_is_reported(copy: Copy) -> None:
    folder = copy(MODEL, "megatron")
    (folder / "release" / MANIFEST).unlink()
    file = folder / "release" / ".metadata"
    metadata = pickle.loads(file.read_bytes())
    found = metadata.state_dict_metadata.pop("decoder.layers.1.mlp.linear_fc2.weight")
    metadata.state_dict_metadata["decoder.layers.1.mlp.linear_fc2.bias"] = found
    file.write_bytes(pickle.dumps(metadata))
    message = refused(folder)
    assert "1 tensors are missing: decoder.layers.1.mlp.linear_fc2.weight" in message
    assert "1 tensors do not belong to the family llama: decoder.layers.1.mlp.linear_fc2.bias" in message


def test_a_missing_iteration_is_reported(copy: Copy) -> None:
    folder = copy(MODEL, "megatron")
    assert "no checkpoint of iteration 7 found" in refused(folder, iteration=7)
    (folder / "iter_0000003").mkdir()
    assert "no checkpoint of iteration 7 found; there are 3" in refused(folder, iteration=7)


def test_more_tokens_than_rows_are_refused(copy: Copy) -> None:
    folder = copy(MODEL, "megatron")
    assert "251 tokens, but the embedding has only 250 rows" in refused(folder, vocab_size=251)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    assert "no such folder" in refused(source)
    source.mkdir()
    assert "neither a Hugging Face folder (config.json) nor a Megatron checkpoint" in refused(source)
    (source / "checkpoints" / "iter_0000003").mkdir(parents=True)
    assert f"a run directory, whose checkpoints are in {source / 'checkpoints'}" in refused(source)
    (source / TRACKER).write_text("3")
    assert "no checkpoint found" in refused(source)


def test_an_existing_target_is_replaced_only_on_request(copy: Copy, tmp_path: Path) -> None:
    folder = copy(MODEL, "hf")
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "mine").write_text("precious")
    assert "already exists; use --overwrite to replace it" in refused(folder)
    assert (tmp_path / "target" / "mine").read_text() == "precious"
    convert(folder, tmp_path / "target", overwrite=True)
    assert not (tmp_path / "target" / "mine").exists()


def test_leftovers_of_a_killed_conversion_are_removed(copy: Copy, tmp_path: Path) -> None:
    folder = copy(MODEL, "hf")
    left = tmp_path / ".target.converting"
    (left / "release").mkdir(parents=True)
    (left / "rest").write_text("half")
    convert(folder, tmp_path / "target")
    assert not left.exists()
    assert not (tmp_path / "target" / "rest").exists()


@pytest.mark.parametrize(
    ("format", "options", "expected"),
    [
        (
            "hf",
            {"vocab_size": 9, "iteration": 3, "shard_bytes": 9},
            ["--vocab-size", "--iteration", "--max-shard-"],
        ),
        ("megatron", {"to": "megatron", "verify": True}, ["--verify-logits"]),
        ("hf", {"verify": True, "upcycling": Upcycling(2)}, ["--verify-logits"]),
    ],
)
def test_options_without_effect_are_refused(
    format: str, options: dict[str, object], expected: list[str], copy: Copy
) -> None:
    message = refused(copy(MODEL, format), **options)
    assert all(text in message for text in expected)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 300 KB."""
    with small_file_system(tmp_path / "disk", "300k") as folder:
        yield folder


@pytest.mark.parametrize("format", ["hf", "megatron"])
@pytest.mark.parametrize("seen", [True, False], ids=["before writing", "while writing"])
def test_a_full_disk_is_reported(
    format: str, seen: bool, models: Callable[[str], Path], small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not seen:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 0, 10**9))  # type: ignore[attr-defined]
    error, message = (UserError, "GB are needed") if seen else (OSError, "No space left on device")
    with pytest.raises(error, match=message):
        convert(models("Llama 2") / format, small_disk / "target")
    assert not list(small_disk.iterdir())
