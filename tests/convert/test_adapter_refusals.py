"""Adapters that cannot be converted are refused with every reason, and nothing is left behind."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flagscale.errors import UserError
from flagscale_testing.adapters import make_trained
from flagscale_testing.conversion import tensors_of
from megatron.flagscale.convert.adapter_conversion import export_adapter, import_adapter
from megatron.flagscale.convert.convert import convert
from megatron.flagscale.convert.merged import AdapterFolder
from tools.checkpoint import adapter
from tools.command import run

MODEL = "Llama 2"
LAYER = "base_model.model.model.layers.1.self_attn"
Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="session")
def base(models: Callable[[str], Path]) -> Path:
    return models(MODEL)


@pytest.fixture(scope="session")
def exported(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an adapter: its checkpoint, and its export to `peft`."""
    folder = tmp_path_factory.mktemp("adapter")
    make_trained(base / "megatron", folder / "trained", ["q_proj", "o_proj"])
    export_adapter(folder / "trained", folder / "peft", base=base / "hf")
    return folder


@pytest.fixture
def peft(exported: Path, tmp_path: Path) -> Path:
    """A copy of the folder of PEFT, which a test may damage."""
    return Path(shutil.copytree(exported / "peft", tmp_path / "from/peft"))


def refused(call: Callable[..., object], load: Path, **options: Any) -> str:
    """Check that a conversion is refused and leaves nothing behind; return its message."""
    save = load.parent / "target"
    before = sorted(load.parent.iterdir())
    with pytest.raises(UserError) as caught:
        call(load, save, **options)
    assert sorted(load.parent.iterdir()) == before
    return str(caught.value)


def merge(load: Path, save: Path, *, base: Path) -> object:
    return convert(base, save, to="huggingface", adapter=AdapterFolder(load))


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"r": 0}, "its rank is 0; a positive whole number is needed"),
        ({"lora_alpha": -1}, "its alpha is -1; a positive number is needed"),
        ({"lora_dropout": 1.0}, "its dropout is 1.0; a number of at least 0 and less than 1 is needed"),
        ({"use_dora": True}, "`use_dora` is True, which is not supported: DoRA also scales the weights"),
        ({"rank_pattern": {"q_proj": 8}}, "`rank_pattern` is {'q_proj': 8}, which is not supported"),
        ({"alpha_pattern": {"q_proj": 8}}, "`alpha_pattern` is {'q_proj': 8}, which is not supported"),
        ({"bias": "lora_only"}, "`bias` is 'lora_only', which is not supported"),
        ({"modules_to_save": ["lm_head"]}, "`modules_to_save` is ['lm_head'], which is not supported"),
        ({"init_lora_weights": "pissa"}, "is 'pissa', which also changes the weights of the base"),
        ({"peft_type": "IA3"}, "`peft_type` is 'IA3'; only 'LORA' is supported"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "adapters of joined experts are not supported"),
        ({"a_key_of_tomorrow": 1}, "`a_key_of_tomorrow` is 1, which is not supported"),
    ],
)
def test_a_setting_that_is_not_supported(peft: Path, base: Path, changes: dict[str, Any], what: str) -> None:
    configure(peft, **changes)
    assert what in refused(import_adapter, peft, base=base / "megatron")


def test_settings_of_rslora_become_an_alpha(peft: Path, base: Path, tmp_path: Path) -> None:
    configure(peft, use_rslora=True)  # rank 4, alpha 8
    made = import_adapter(peft, tmp_path / "made", base=base / "megatron")
    assert made.adapter.lora.alpha == 16
    assert made.adapter.lora.scale == 4


def test_all_mistakes_are_reported_at_once(peft: Path, base: Path) -> None:
    def change(tensors: Tensors) -> None:
        del tensors[f"{LAYER}.q_proj.lora_B.weight"]
        tensors[f"{LAYER}.o_proj.lora_A.weight"] = torch.ones(3, 64)
        tensors["base_model.model.model.layers.9.self_attn.q_proj.lora_A.weight"] = torch.ones(4, 64)
        tensors["base_model.model.lm_head.lora_A.weight"] = torch.ones(4, 64)

    rewrite(peft, change)
    message = refused(merge, peft, base=base / "hf")
    assert "2 tensors do not belong to the base, a llama of 4 layers: base_model.model.lm_head" in message
    assert f"1 tensors are missing: {LAYER}.q_proj.lora_B.weight" in message
    assert f"{LAYER}.o_proj.lora_A.weight has shape [3, 64], but rank 4 and the base give [4, 64]" in message
    assert message.count("\n") == 2


def test_values_that_are_not_finite(peft: Path, base: Path) -> None:
    rewrite(peft, lambda tensors: tensors[f"{LAYER}.q_proj.lora_A.weight"].fill_(float("nan")))
    message = refused(merge, peft, base=base / "hf")
    assert f"1 tensors hold NaN or infinity: {LAYER}.q_proj.lora_A.weight" in message


def test_a_training_changes_all_layers(peft: Path, base: Path, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        for part in "AB":
            del tensors[f"{LAYER}.q_proj.lora_{part}.weight"]

    rewrite(peft, change)
    message = refused(import_adapter, peft, base=base / "megatron")
    assert "it changes q_proj in some layers, but not model.layers.1.self_attn.q_proj" in message
    merge(peft, tmp_path / "merged", base=base / "hf")


def test_an_adapter_of_another_base(
    exported: Path, peft: Path, models: Callable[[str], Path], tmp_path: Path
) -> None:
    other = models("Mixtral")
    moved = Path(shutil.copytree(exported / "trained", tmp_path / "trained"))
    make_trained(other / "megatron", tmp_path / "experts/trained", ["down_proj"])
    message = refused(export_adapter, tmp_path / "experts/trained", base=moved)
    assert "holds an adapter without its base" in message
    for call, load in ((export_adapter, tmp_path / "experts/trained"), (merge, tmp_path / "experts/trained")):
        assert "do not belong to the base, a llama of 4 layers" in refused(
            call, load, base=models(MODEL) / "hf"
        )


def test_a_base_with_other_weights(exported: Path, peft: Path, base: Path, tmp_path: Path) -> None:
    import_adapter(peft, tmp_path / "from/trained", base=base / "megatron")
    other = Path(shutil.copytree(base / "hf", tmp_path / "hf"))
    tensors = load_file(other / "model.safetensors")
    tensors["model.norm.weight"] += 1
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    convert(other, tmp_path / "other")
    for call in (export_adapter, merge):
        message = refused(call, tmp_path / "from/trained", base=tmp_path / "other")
        assert f"it was trained on another base than {tmp_path / 'other'}" in message
        assert f"its training loaded {base / 'megatron'}" in message


def test_pickles_are_never_read(peft: Path, base: Path) -> None:
    (peft / "adapter_model.safetensors").rename(peft / "adapter_model.bin")
    message = refused(import_adapter, peft, base=base / "megatron")
    assert "no adapter_model.safetensors found" in message
    assert "adapter_model.bin is a pickle, which could run code" in message


def test_a_whole_model_is_not_an_adapter(base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base / "megatron", tmp_path / "from/megatron"))
    assert "not a checkpoint of an adapter (no `lora_rank`)" in refused(export_adapter, copy)


def test_an_adapter_is_not_a_whole_model(exported: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported / "trained", tmp_path / "from/trained"))
    assert "holds an adapter without its base" in refused(convert, copy)


def test_experts_with_a_gate_alone_can_only_be_merged(models: Callable[[str], Path], tmp_path: Path) -> None:
    base = models("Mixtral")
    make_trained(base / "megatron", tmp_path / "from/trained", ["gate_proj"])
    message = refused(export_adapter, tmp_path / "from/trained")
    assert "its experts have gate_proj alone" in message
    merge(tmp_path / "from/trained", tmp_path / "merged", base=base / "hf")


def test_experts_that_peft_does_not_read_can_only_be_merged(
    models: Callable[[str], Path], tmp_path: Path
) -> None:
    base = models("Qwen2-MoE")
    make_trained(base / "megatron", tmp_path / "from/trained", ["q_proj", "gate_proj", "up_proj"])
    message = refused(export_adapter, tmp_path / "from/trained")
    assert "PEFT 0.21.2 does not read adapters of experts of the family qwen2_moe" in message
    assert "train other projections than gate_proj, up_proj (`lora_targets`), or merge it" in message
    merge(tmp_path / "from/trained", tmp_path / "merged", base=base / "hf")
    changed, original = (tensors_of(one) for one in (tmp_path / "merged", base / "hf"))
    for name in ("experts.2.gate_proj", "shared_expert.up_proj", "shared_expert_gate"):
        weight = f"model.layers.1.mlp.{name}.weight"
        assert torch.equal(changed[weight], original[weight]) == name.endswith("_gate")


def test_the_gate_of_a_shared_expert_has_no_adapter(models: Callable[[str], Path], tmp_path: Path) -> None:
    base, gate = models("Qwen2-MoE"), "base_model.model.model.layers.1.mlp.shared_expert_gate"
    make_trained(base / "megatron", tmp_path / "from/trained", ["q_proj"])
    export_adapter(tmp_path / "from/trained", tmp_path / "from/peft")
    matrices = {f"{gate}.lora_A.weight": torch.ones(4, 64), f"{gate}.lora_B.weight": torch.ones(1, 4)}
    rewrite(tmp_path / "from/peft", lambda tensors: tensors.update(matrices))
    message = refused(import_adapter, tmp_path / "from/peft", base=base / "megatron")
    assert f"2 tensors do not belong to the base, a qwen2_moe of 4 layers: {gate}.lora_A.weight" in message


def test_the_command_reports_mistakes_without_a_traceback(
    peft: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(peft, r=0, use_dora=True)
    words = ["import", "--load", peft, "--save", tmp_path / "made", "--base", base / "megatron"]
    monkeypatch.setattr(sys, "argv", ["adapter.py", *map(str, words)])
    assert run(adapter.main) == 2
    assert capsys.readouterr().err.count("error: ") == 2
    assert not (tmp_path / "made").exists()


def test_the_command_converts_there_and_back(
    exported: Path,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in (
        ["export", "--load", exported / "trained", "--save", tmp_path / "peft"],
        ["import", "--load", tmp_path / "peft", "--save", tmp_path / "back", "--base", base / "megatron"],
        ["merge", "--load", tmp_path / "back", "--save", tmp_path / "hf", "--base", base / "megatron"],
    ):
        monkeypatch.setattr(sys, "argv", ["adapter.py", *map(str, words)])
        assert run(adapter.main) == 0
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'peft'}: rank 4, alpha 8, 8 projections (q_proj, o_proj), 0.0 MB" in printed
    assert f"{tmp_path / 'hf'}: llama, " in printed
