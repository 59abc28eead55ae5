"""Adapters are exported to PEFT, imported from it, and merged into their bases."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flagscale.run.base import identity
from flagscale.run.checkpoints import read_arguments as recorded_arguments
from flagscale_testing.adapters import make_trained
from flagscale_testing.conversion import CASES, VOCAB, same, tensors_of
from megatron.flagscale.convert.adapter_conversion import export_adapter, import_adapter
from megatron.flagscale.convert.checkpoints import find_checkpoint
from megatron.flagscale.convert.convert import convert
from megatron.flagscale.convert.merged import AdapterFolder
from megatron.flagscale.convert.torch_dist_reader import StoredTensors, read_arguments

Models = Callable[[str], Path]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
LATENT = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj")
KINDS = {
    "Llama 2": (*ATTENTION, *MLP),
    "Qwen2, 2.5": ("q_proj", "v_proj", "up_proj"),
    "Qwen3": (*ATTENTION, *MLP),
    "Mistral": (*ATTENTION, *MLP),
    "Aquila": (*ATTENTION, *MLP),
    "Llama, biases": (*ATTENTION, *MLP),
    "OLMo-2": (*ATTENTION, *MLP),
    "Gemma-2": (*ATTENTION, *MLP),
    "Gemma-3": (*ATTENTION, *MLP),
    "gpt-oss": ATTENTION,
    "Mixtral": (*ATTENTION, *MLP),
    "Qwen2-MoE": ATTENTION,  # PEFT does not read those of its experts
    "Qwen3-MoE": (*ATTENTION, *MLP),
    "DeepSeek-V2": (*LATENT, *MLP),
    "DeepSeek-V2-Lite": ("q_proj", *LATENT[2:], *MLP),
    "DeepSeek-V3": (*LATENT, *MLP),
}
DOUBLE = ("Gemma-2",)
"""Computed in float64: the tiny model's caps follow scores that rounding to fp32 changes by 2e-5 of them."""
FAST = ("Qwen2, 2.5", "Mixtral")
RANK, ALPHA = 4, 8


@pytest.fixture(scope="session")
def trained(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a folder with the checkpoint of a case's adapter, and its export to `peft`; made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("adapter")
            make_trained(models(name) / "megatron", made[name] / "trained", KINDS[name], RANK, ALPHA)
            export_adapter(made[name] / "trained", made[name] / "peft", base=models(name) / "hf")
        return made[name]

    return folder


def cases() -> list[Any]:
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in KINDS]


def stored(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of the model in a folder of checkpoints."""
    tensors = StoredTensors(find_checkpoint(folder))
    return {name: tensors.whole(name) for name in tensors.shapes()}


def changed(base: Path, peft: Path) -> dict[str, torch.Tensor]:
    """Return a folder's tensors with W + scale * B A computed by the names in PEFT's format."""
    weights, adapter = tensors_of(base), load_file(peft / "adapter_model.safetensors")
    for name, a in adapter.items():
        if name.endswith("lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            weights[f"{module.removeprefix('base_model.model.')}.weight"] += (
                ALPHA / RANK * (adapter[f"{module}.lora_B.weight"] @ a)
            )
    return weights


def test_names_in_both_formats(trained: Callable[[str], Path]) -> None:
    names = stored(trained("Mixtral") / "trained").keys()
    assert "decoder.layers.1.self_attention.linear_qkv.adapters.k_proj.b.weight" in names
    assert "decoder.layers.0.mlp.experts.local_experts.1.linear_fc1.adapters.up_proj.a.weight" in names
    exported = load_file(trained("Mixtral") / "peft/adapter_model.safetensors").keys()
    layer = "base_model.model.model.layers."
    assert f"{layer}1.self_attn.k_proj.lora_B.weight" in exported
    assert f"{layer}0.block_sparse_moe.experts.1.w3.lora_A.weight" in exported
    assert len(exported) == len(names)
    config = json.loads((trained("Mixtral") / "peft/adapter_config.json").read_text())
    assert config["target_modules"] == ["k_proj", "o_proj", "q_proj", "v_proj", "w1", "w2", "w3"]
    assert (config["r"], config["lora_alpha"]) == (RANK, ALPHA)


@pytest.mark.parametrize("name", cases())
def test_a_merged_model_has_the_changed_weights(
    name: str, models: Models, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    base, adapter = models(name), trained(name)
    convert(base / "hf", tmp_path / "hf", to="huggingface", adapter=AdapterFolder(adapter / "peft"))
    expected, found = changed(base / "hf", adapter / "peft"), tensors_of(tmp_path / "hf")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[one], expected[one]) for one in expected)
    # From checkpoint to checkpoint, it is the same model.
    convert(base / "megatron", tmp_path / "one", to="megatron", adapter=AdapterFolder(adapter / "trained"))
    convert(tmp_path / "one", tmp_path / "back")
    assert same(tmp_path / "hf", tmp_path / "back")


@pytest.mark.parametrize("name", cases())
def test_an_exported_adapter_comes_back_bit_for_bit(
    name: str, models: Models, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    base = models(name) / "megatron"
    import_adapter(trained(name) / "peft", tmp_path / "back", base=base)
    before, after = stored(trained(name) / "trained"), stored(tmp_path / "back")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[one], after[one]) for one in before)
    args = read_arguments(find_checkpoint(tmp_path / "back"))
    assert (args["lora_rank"], args["lora_alpha"], args["pretrained_checkpoint"]) == (RANK, ALPHA, str(base))
    assert {*args["lora_targets"]} == {*KINDS[name]}
    assert args["num_layers"] == 4
    # The launcher and the ranks refuse another base.
    recorded = recorded_arguments(find_checkpoint(tmp_path / "back")) or {}
    assert recorded["lora_base"] == identity(find_checkpoint(base))


@pytest.mark.parametrize("name", cases())
def test_peft_computes_the_merged_model(
    name: str, models: Models, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (make test installs it)")
    import transformers

    kind = getattr(transformers, f"{CASES[name].config.removesuffix('Text')}ForCausalLM")
    convert(
        models(name) / "hf",
        tmp_path / "hf",
        to="huggingface",
        adapter=AdapterFolder(trained(name) / "trained"),
    )
    tokens = torch.randint(3, VOCAB - 1, (2, 32), generator=torch.Generator().manual_seed(1))
    dtype = torch.float64 if name in DOUBLE else torch.float32
    with torch.no_grad():
        merged = kind.from_pretrained(tmp_path / "hf", dtype=dtype)
        expected = merged(tokens).logits
        base = kind.from_pretrained(models(name) / "hf", dtype=dtype)
        plain = base(tokens).logits
        adapted = peft.PeftModel.from_pretrained(base, trained(name) / "peft")
        found = adapted(tokens).logits
        by_peft = adapted.merge_and_unload()
    largest = expected.abs().max()
    assert (found - expected).abs().max() < 1e-5 * largest
    assert (plain - expected).abs().max() > 1e-2 * largest
    weights = dict(merged.named_parameters())
    for one, weight in by_peft.named_parameters():
        assert torch.allclose(weight, weights[one], rtol=1e-6, atol=1e-6), one


def test_an_adapter_is_imported_for_a_training_on_a_hugging_face_folder(
    models: Models, trained: Callable[[str], Path], tmp_path: Path
) -> None:
    base, peft = models("Qwen2, 2.5"), trained("Qwen2, 2.5") / "peft"
    import_adapter(peft, tmp_path / "on_hf", base=base / "hf")
    import_adapter(peft, tmp_path / "on_megatron", base=base / "megatron")
    ours, theirs = (stored(tmp_path / one) for one in ("on_hf", "on_megatron"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[one], theirs[one]) for one in ours)
    args = read_arguments(find_checkpoint(tmp_path / "on_hf"))
    assert args["pretrained_checkpoint"] == str(base / "hf")
    assert "lora_base" not in args  # the folder's weights are identified once they are converted
    assert args["num_layers"] == 4


def test_an_adapter_that_peft_has_saved(models: Models, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed (make test installs it)")
    from transformers import LlamaForCausalLM

    base = models("Llama 2")
    settings = peft.LoraConfig(
        r=RANK, lora_alpha=ALPHA, target_modules=["q_proj", "down_proj"], init_lora_weights=False
    )
    tokens = torch.arange(3, 35)[None]
    with torch.no_grad():
        adapted = peft.get_peft_model(LlamaForCausalLM.from_pretrained(base / "hf"), settings)
        adapted.save_pretrained(tmp_path / "peft")
        import_adapter(tmp_path / "peft", tmp_path / "imported", base=base / "megatron")
        convert(base / "megatron", tmp_path / "hf", adapter=AdapterFolder(tmp_path / "imported"))
        expected = adapted(tokens).logits
        found = LlamaForCausalLM.from_pretrained(tmp_path / "hf")(tokens).logits
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
