"""Trainings that start from a Hugging Face folder: what is refused before launch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagscale.checks.lora import BASE
from flagscale.checks.pretrained import pretrained_violations
from flagscale.checks.resume import Saved, resume_violations
from flagscale.config.catalog import Catalog
from flagscale.engines.megatron.resume import violations
from flagscale.errors import Violation
from flagscale.run.base import identity
from flagscale.run.checkpoints import RELEASE, TRACKER, write_arguments
from tests.unit.conftest import TASK

Compared = Callable[..., dict[str, str]]
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "vocab_size": 250,
}
AGREES = {
    "num_layers": 4,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "group_query_attention": True,
    "num_query_groups": 2,
    "position_embedding_type": "rope",
    "rotary_base": 1000000,
    "normalization": "RMSNorm",
    "layernorm_epsilon": 1e-6,
    "swiglu": True,
    "add_bias_linear": False,
    "add_qkv_bias": True,
    "untie_embeddings_and_output_weights": True,
    **dict.fromkeys(("tensor_model_parallel_size", "pipeline_model_parallel_size"), 1),
}
WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"load": "hf"}, "load", "which holds no checkpoint to continue; name it as `pretrained_checkpoint`"),
    ({"pretrained_checkpoint": None}, "converted_dir", "has no effect without `pretrained_checkpoint`"),
    ({"converted_dir": None}, "converted_dir", "`converted_dir` must name the folder in which its conv"),
    ({"ckpt_format": "torch"}, "ckpt_format", "set `ckpt_format: torch_dist`, not torch"),
    ({"finetune_with_optim": True}, "finetune_with_optim", "it holds no state of an optimizer"),
    ({"moe_use_upcycling": True}, "moe_use_upcycling", "convert.py --experts` makes its experts"),
]


def found(changes: dict[str, Any], folder: Path) -> list[Violation]:
    """Return the broken rules of a run that starts from the Hugging Face folder `hf` in `folder`."""
    (folder / "hf").mkdir(exist_ok=True)
    (folder / "hf/config.json").write_text("{}")
    named = {"pretrained_checkpoint": "hf", "converted_dir": "converted", "load": "run", **changes}
    paths = {name: str(folder / value) for name, value in named.items() if value == "hf"}
    return [*pretrained_violations({**named, **paths})]


@pytest.mark.parametrize(("changes", "blamed", "says"), WRONG)
def test_what_cannot_be_combined(changes: dict[str, Any], blamed: str, says: str, tmp_path: Path) -> None:
    ((name, what),) = found(changes, tmp_path)
    assert name == blamed
    assert says in what


def test_a_run_without_mistakes(tmp_path: Path) -> None:
    assert found({}, tmp_path) == []
    assert found({"ckpt_format": "torch_dist"}, tmp_path) == []


@pytest.fixture
def folder(tmp_path: Path, write_model: Callable[..., Path]) -> Path:
    write_model(tmp_path / "hf")
    (tmp_path / "hf" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "hf"


@pytest.fixture
def compared(folder: Path, catalog: Catalog) -> Compared:
    """Return what is refused of a run on the folder, by argument."""
    defaults = {option.dest: option.default for option in catalog.options.values()}
    named = {"pretrained_checkpoint": str(folder), "load": "/nowhere"}
    return lambda **changes: dict(violations({**defaults, **TASK, **named, **AGREES, **changes}, 1))


@pytest.mark.parametrize("adapters", [{}, {"lora_rank": 4, "lora_alpha": 8.0}])
def test_the_arguments_of_another_model_are_refused_all_at_once(
    folder: Path, compared: Compared, adapters: dict[str, Any]
) -> None:
    assert compared(**adapters) == {}
    wrong = {"hidden_size": 32, "num_query_groups": 4, "rotary_base": 10000, "add_qkv_bias": False}
    refused = compared(**adapters, **wrong)
    assert refused.keys() >= wrong.keys()
    assert (
        f"`hidden_size` is 32, but {folder}/config.json has 64: its weights do not fit; use 64"
        in (refused["hidden_size"])
    )
    assert (
        f"but {folder}/config.json has 1000000: its weights would compute something else; use 1000000"
        in (refused["rotary_base"])
    )


def test_a_model_that_cannot_be_converted_is_refused(folder: Path, compared: Compared) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "hidden_act": "relu"}))
    (what,) = compared().values()
    assert "hidden_act" in what
    assert str(folder / "config.json") in what
    (folder / "config.json").write_text("{")
    assert "invalid JSON" in compared()["pretrained_checkpoint"]


def test_weights_that_cannot_be_read_are_refused(folder: Path, compared: Compared, tmp_path: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert str(weights) in compared()["pretrained_checkpoint"]
    weights.unlink()
    assert "contains no weights" in compared()["pretrained_checkpoint"]
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
    assert compared(load=str(tmp_path)) == {}


@pytest.mark.parametrize("place", ["file", "file/new", "loop"])
def test_a_conversion_needs_a_folder(compared: Compared, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert compared(converted_dir=str(tmp_path / "new" / "folder")) == {}
    refused = compared(converted_dir=str(tmp_path / place))["converted_dir"]
    assert refused.startswith(f"{tmp_path / place.partition('/')[0]}: not a folder")


def test_a_folder_of_something_else_is_no_checkpoint(compared: Compared, tmp_path: Path) -> None:
    def says(path: Path) -> str:
        return compared(pretrained_checkpoint=str(path))["pretrained_checkpoint"]

    kept = tmp_path / "run" / "checkpoints"
    (kept / "iter_0000010").mkdir(parents=True)
    assert "nowhere: no such folder; give a model folder" in says(tmp_path / "nowhere")
    assert says(kept).endswith("not a folder of checkpoints")
    (kept / "latest_checkpointed_iteration.txt").write_text("10")
    assert says(kept / "latest_checkpointed_iteration.txt").endswith(": not a folder")
    assert says(kept.parent).endswith(f"did you mean {kept}?")
    assert says(kept / "iter_0000010").endswith(f"did you mean {kept}?")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "an adapter in PEFT's format (adapter_config.json)" in says(tmp_path)


def test_a_base_that_computes_something_else() -> None:
    """Adapters are used with the base as it is; a training of all weights may change what they compute."""
    now = {**AGREES, "rotary_base": 10000}
    saved = {"name": "the checkpoint base", "values": AGREES, "resumes": False}
    (refused,) = resume_violations(Saved(**saved, is_base=True), {**now, "lora_rank": 4})
    assert refused[0] == "rotary_base"
    assert "use 1000000, or train the adapters of another base" in refused[1]
    assert [*resume_violations(Saved(**saved), now)] == []


def checkpoint(folder: Path, weights: bytes, **arguments: Any) -> Path:
    """Write a conversion as far as the launcher reads it; return the folder of checkpoints."""
    release = folder / RELEASE
    release.mkdir(parents=True)
    (folder / TRACKER).write_text(RELEASE)
    for name in (".metadata", "metadata.json"):
        (release / name).touch()
    (release / "__0_0.distcp").write_bytes(weights)
    write_arguments(release, arguments)
    return folder


def test_adapters_of_another_base_or_rank_are_refused(tmp_path: Path, compared: Compared) -> None:
    base, other = (checkpoint(tmp_path / name, name.encode(), **AGREES) for name in ("base", "other"))
    own = {"lora_rank": 4, "lora_alpha": 8.0, BASE: identity(base / RELEASE)}
    adapters = checkpoint(tmp_path / "adapters", b"", **AGREES, **own)
    run = {"lora_rank": 4, "lora_alpha": 8.0, "load": str(adapters), "pretrained_checkpoint": str(base)}
    assert compared(**run) == {}
    refused = compared(**{**run, "pretrained_checkpoint": str(other)})
    assert f"has the adapters of another base than {other}" in refused["pretrained_checkpoint"]
    refused = compared(**{**run, "lora_rank": 8, "lora_alpha": 16.0})
    assert "`lora_rank` is 8, but the checkpoint" in refused["lora_rank"]
    refused = compared(**{**run, "pretrained_checkpoint": str(tmp_path / "absent")})
    assert f"{tmp_path}/absent: no such folder; give a model folder" in refused["pretrained_checkpoint"]


def test_a_whole_model_is_refused_as_a_checkpoint_of_adapters(tmp_path: Path, compared: Compared) -> None:
    base, whole = (checkpoint(tmp_path / name, b"", **AGREES) for name in ("base", "whole"))
    run = {"lora_rank": 4, "load": str(whole), "pretrained_checkpoint": str(base)}
    refused = compared(**run)
    assert "holds a whole model, but this run trains adapters" in refused["load"]
    (base / RELEASE / ".metadata").unlink()
    assert "cannot be used: its save was not finished" in compared(**run)["pretrained_checkpoint"]


@pytest.mark.parametrize("named", [b"\xff\xfe", "²".encode()])
def test_a_base_whose_tracker_is_damaged(tmp_path: Path, compared: Compared, named: bytes) -> None:
    base = checkpoint(tmp_path / "base", b"", **AGREES)
    (base / TRACKER).write_bytes(named)
    refused = compared(lora_rank=4, pretrained_checkpoint=str(base))
    assert "cannot be used: no such folder" in refused["pretrained_checkpoint"]
