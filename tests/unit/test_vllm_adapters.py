"""Adapters that vLLM serves are checked before it starts: their folders, ranks, and their base."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagscale.engines.vllm.adapters import adapter_violations
from flagscale.engines.vllm.catalog import vllm_catalog
from megatron.flagscale.convert.weight_writer import SHARD_BYTES, Planned, WeightWriter

DEFAULTS = {option.dest: option.default for option in vllm_catalog().server.options.values()}
QUERY = "model.layers.0.self_attn.q_proj"


def write(folder: Path, name: str, shapes: dict[str, tuple[int, int]]) -> None:
    """Write zeros of these shapes in fp32."""
    planned = [Planned(one, "F32", shape, 4 * shape[0] * shape[1]) for one, shape in shapes.items()]
    writer = WeightWriter(folder, planned, SHARD_BYTES, name)
    for one in planned:
        writer.append(one.name, [bytes(one.size)])
    writer.finish()


@pytest.fixture
def model(tmp_path: Path, write_model: Callable[..., Path]) -> Path:
    folder = write_model(tmp_path / "model")
    write(folder, "model.safetensors", {f"{QUERY}.weight": (12, 8)})
    return folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4}))
    names = {
        f"base_model.model.{QUERY}.lora_A.weight": (4, 8),
        f"base_model.model.{QUERY}.lora_B.weight": (12, 4),
    }
    write(folder, "adapter_model.safetensors", names)
    return folder


def found(model: Path, *modules: str, **values: Any) -> list[str]:
    given = {**DEFAULTS, "model": str(model), "enable_lora": True, "lora_modules": [*modules], **values}
    return [what for _, what in adapter_violations(given)]


def test_an_adapter_of_the_model(model: Path, adapter: Path) -> None:
    assert found(model, f"tuned={adapter}") == []
    assert found(model, json.dumps({"name": "tuned", "path": str(adapter)})) == []
    assert found(model, "tuned=owner/name") == []  # a name on a hub
    assert found(model) == []


def test_every_mistake_is_reported(model: Path, adapter: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    messages = found(
        model, f"tuned={adapter}", f"tuned={missing}", "tuned", enable_lora=False, max_lora_rank=1
    )
    assert messages == [
        "`lora_modules` has no effect without `enable_lora: true`",
        "'tuned' is not an adapter; write NAME=FOLDER",
        "`lora_modules` names tuned more than once",
        f"{adapter}: its rank is 4, but `max_lora_rank` is 1",
        f"{missing}: no such folder",
    ]


def test_an_adapter_of_another_model(model: Path, adapter: Path) -> None:
    write(model, "model.safetensors", {f"{QUERY}.weight": (12, 16)})
    (message,) = found(model, f"tuned={adapter}")
    assert f"it belongs to another model: base_model.model.{QUERY}.lora_A.weight has shape [4, 8]" in message
    assert f"{QUERY}.weight of the model has [12, 16]" in message


def test_checkpoints_are_not_an_adapter(model: Path, tmp_path: Path) -> None:
    (tmp_path / "latest_checkpointed_iteration.txt").write_text("10")
    (message,) = found(model, f"tuned={tmp_path}")
    assert "not a folder of PEFT (no adapter_config.json)" in message
    assert f"adapter.py export --load {tmp_path} --save FOLDER" in message


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("adapter_config.json", b"{}", "not of an adapter of LoRA: it has no rank (`r`, a whole number)"),
        ("adapter_config.json", b"[]", "not of an adapter of LoRA: it has no rank"),
        ("adapter_config.json", b'{"r": "8"}', "not of an adapter of LoRA: it has no rank"),
        ("adapter_config.json", b"{", "cannot be read"),
        ("adapter_model.safetensors", b"\x01", "damaged or truncated"),
    ],
)
def test_a_damaged_folder(model: Path, adapter: Path, name: str, content: bytes, what: str) -> None:
    (adapter / name).write_bytes(content)
    (message,) = found(model, f"tuned={adapter}")
    assert what in message


def test_a_folder_without_weights(model: Path, adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    (message,) = found(model, f"tuned={adapter}")
    assert message == f"{adapter}: contains no weights (no adapter_model.safetensors)"
    (adapter / "adapter_model.bin").write_bytes(b"")
    assert found(model, f"tuned={adapter}") == []  # vLLM reads it
