"""gpt-oss: its arguments, what is refused, stacked experts, and weights stored as 4-bit floats."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from flagscale.checks.weight_files import INDEX
from flagscale.errors import UserError
from flagscale_testing.conversion import CASES, make_model, same, tensors_of
from megatron.flagscale.convert.convert import convert
from megatron.flagscale.convert.hf_config import read_config, write_config
from megatron.flagscale.convert.megatron_args import checkpoint_arguments, task_arguments
from megatron.flagscale.convert.megatron_model import model_of
from megatron.flagscale.convert.model import Yarn
from megatron.flagscale.convert.mxfp4 import unpacked
from tests.convert.public_configs import CONFIGS

Models = Callable[[str], Path]
EXPERTS = "model.layers.0.mlp.experts."


def public(**changes: Any) -> dict[str, Any]:
    """Return the published `config.json` with changes."""
    return {**CONFIGS["gpt-oss"][1], **changes}


def test_the_arguments_of_the_published_model() -> None:
    model = read_config(public(), "config.json")
    assert model.rope is not None
    assert model.rope.yarn == Yarn(4096, 32.0, 1.0, 1.0, 0.0, False)
    task = task_arguments(model)
    expected = {
        "position_embedding_type": "yarn",
        "rotary_scaling_factor": 32.0,
        "no_yarn_correction_range_round_to_int": True,
        "softmax_type": "learnable",
        "window_size": "127,0",
        "window_attn_skip_freq": 2,
        "quick_geglu": True,
        "glu_linear_offset": 1.0,
        "activation_func_clamp_value": 7.0,
        "add_qkv_bias": True,
        "moe_aux_loss_coeff": 0.9,
        "transformer_impl": "torch",
        "no_bias_gelu_fusion": True,
    }
    assert task | expected == task
    assert not {"disable_bias_linear", "swiglu", "moe_router_pre_softmax"} & task.keys()


def test_a_model_survives_megatrons_arguments() -> None:
    model = read_config(public(), "config.json")
    arguments = checkpoint_arguments(model)
    assert model_of(arguments, model.vocab, "checkpoint") == model
    for name, value in (
        ("softmax_type", "vanilla"),
        ("glu_linear_offset", 0.0),
        ("window_attn_skip_freq", None),
        ("quick_geglu", False),
        ("add_bias_linear", False),
    ):
        with pytest.raises(UserError, match=f"{name} = "):
            model_of({**arguments, name: value}, model.vocab, "checkpoint")


def test_yarn_is_rounded_where_the_key_or_the_argument_is_missing() -> None:
    scaling = {key: value for key, value in public()["rope_scaling"].items() if key != "truncate"}
    model = read_config(public(rope_scaling=scaling), "config.json")
    assert not [name for name in task_arguments(model) if "round_to_int" in name]
    arguments = {**checkpoint_arguments(model), "yarn_correction_range_round_to_int": None}
    assert model_of(arguments, model.vocab, "checkpoint") == model


def test_a_model_without_a_window_is_read_and_written() -> None:
    model = read_config(public(max_position_embeddings=64, sliding_window=128), "config.json")
    assert model.window == 0
    written = write_config(model, {})
    assert written["sliding_window"] is None
    assert written["layer_types"] == ["full_attention"] * 2
    assert read_config(written, "written") == model
    assert model_of(checkpoint_arguments(model), model.vocab, "checkpoint") == model


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_types": ["full_attention"] * 2}, "`layer_types` is ['full"),
        ({"layer_types": ["sliding_attention"] * 2}, "'sliding_attention', 'full_attention' in turns"),
        ({"layer_types": ["full_attention"] * 3, "sliding_window": None}, "`layer_types` is ['full"),
        ({"layer_types": 7, "sliding_window": None}, "`layer_types` is 7; only 'sliding_attention', "),
        (
            {"rope_scaling": {"rope_type": "default"}},
            "vLLM computes only rotary positions of the kind 'yarn'",
        ),
        ({"num_experts_per_tok": 1, "experts_per_token": 1}, "does not normalize the weight of a single"),
        ({"experts_per_token": 2}, "`num_experts_per_tok` is 4, and the two must be equal"),
        ({"initial_context_length": 2048}, "it must be `original_max_position_embeddings`, 4096"),
        ({"swiglu_alpha": 1.0}, "`swiglu_alpha` is 1.0; only 1.702 is supported"),
        ({"swiglu_limit": None}, "`swiglu_limit` is missing or null"),
        ({"swiglu_limit": 0}, "`swiglu_limit` is 0, not a positive number"),
        ({"attention_bias": False}, "`attention_bias` is False; only True is supported"),
        ({"attention_dropout": 0.1}, "`attention_dropout` is 0.1; only 0 is supported"),
        ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu'"),
        ({"quantization_config": {"quant_method": "mxfp4", "group_size": 16}}, "quantized weights cannot"),
    ],
)
def test_what_megatron_or_others_cannot_compute_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_config(public(**changes), "config.json")
    assert message in str(caught.value)


def test_packed_weights_are_refused_in_a_family_that_has_none() -> None:
    llama = {**CONFIGS["Llama 3.1"][1], "quantization_config": {"quant_method": "mxfp4"}}
    with pytest.raises(UserError, match="quantized weights cannot be converted"):
        read_config(llama, "config.json")


def test_stacked_experts_are_written_in_shards_and_cast(models: Models, tmp_path: Path) -> None:
    convert(models("gpt-oss") / "megatron", tmp_path / "shards", shard_bytes=200_000)
    assert len(json.loads((tmp_path / "shards" / INDEX).read_text())["weight_map"]) > 3
    assert same(tmp_path / "shards", models("gpt-oss") / "hf")
    convert(models("gpt-oss") / "hf", tmp_path / "cast", to="huggingface", dtype="bfloat16")
    original = tensors_of(models("gpt-oss") / "hf")
    for name, tensor in tensors_of(tmp_path / "cast").items():
        assert torch.equal(tensor, original[name].bfloat16()), name


def test_gate_and_up_are_taken_apart(models: Models) -> None:
    from megatron.flagscale.convert.torch_dist_reader import StoredTensors

    stored = tensors_of(models("gpt-oss") / "hf")
    found = StoredTensors(models("gpt-oss") / "megatron" / "release")
    name = "decoder.layers.0.mlp.experts.experts.linear_fc1"
    joined, biases = stored[f"{EXPERTS}gate_up_proj"], stored[f"{EXPERTS}gate_up_proj_bias"]
    whole = found.whole(f"{name}.weight")
    assert torch.equal(whole[3, 5], joined[3, :, 10])  # the fifth gate
    assert torch.equal(whole[3, 96 + 5], joined[3, :, 11])  # the fifth up
    assert torch.equal(found.whole(f"{name}.bias")[2, 96:], biases[2, 1::2])


def test_stacked_tensors_of_another_number_of_experts_are_refused(models: Models, copy: Any) -> None:
    folder = copy("gpt-oss", "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_local_experts": 6}))
    with pytest.raises(UserError, match=r"gate_up_proj .*has shape \[8, 64, 192\], but .* \[6, 64, 192\]"):
        convert(folder, folder.parent / "megatron")


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    """A gpt-oss whose experts are stored as 4-bit floats."""
    folder = tmp_path / "mxfp4"
    make_model(replace(CASES["gpt-oss"], dtype="bfloat16"), folder)
    stored: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(0)
    for name, weight in tensors_of(folder).items():
        if not name.endswith("_proj"):
            stored[name] = weight
            continue
        experts, columns, rows = weight.shape
        shape = (experts, rows, columns // 32)
        stored[f"{name}_blocks"] = torch.randint(256, (*shape, 16), dtype=torch.uint8, generator=generator)
        stored[f"{name}_scales"] = torch.randint(118, 126, shape, dtype=torch.uint8, generator=generator)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = CONFIGS["gpt-oss"][1]["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_4_bit_weights_are_read_as_by_transformers(packed: Path, tmp_path: Path) -> None:
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    assert convert(packed, tmp_path / "megatron").model.dtype == "bfloat16"
    convert(tmp_path / "megatron", tmp_path / "back")
    stored, back = tensors_of(packed), tensors_of(tmp_path / "back")
    assert f"{EXPERTS}down_proj" in back
    for name, tensor in back.items():
        expected = stored.get(name)
        if expected is None:
            expected = convert_moe_packed_tensors(stored[f"{name}_blocks"], stored[f"{name}_scales"])
        assert torch.equal(tensor, expected), name
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())


def test_the_values_of_a_block() -> None:
    """The low half of a byte comes first; 127 is the exponent 0."""
    blocks = torch.zeros(2, 1, 16, dtype=torch.uint8)
    blocks[0, 0, 0], blocks[1, 0, 15] = 0x72, 0xF9
    found = unpacked(blocks, torch.tensor([[127], [130]], dtype=torch.uint8))
    assert (found.shape, found.dtype) == ((32, 2), torch.bfloat16)
    assert found[:2, 0].tolist() == [1.0, 6.0]
    assert found[30:, 1].tolist() == [-4.0, -48.0]
    assert found.count_nonzero() == 4


def test_blocks_that_do_not_fit_are_refused(packed: Path, tmp_path: Path) -> None:
    stored, name = tensors_of(packed), f"{EXPERTS}down_proj"
    wrong = {**stored, f"{name}_scales": stored[f"{name}_scales"][:, 1:].contiguous()}
    save_file(wrong, packed / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"down_proj is stored as U8 \[8, 64, 3, 16\] with scales U8 \[8, 63"):
        convert(packed, tmp_path / "megatron")
    del stored[f"{name}_scales"]
    save_file(stored, packed / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"tensors do not belong .*down_proj_blocks"):
        convert(packed, tmp_path / "megatron")


def test_logits_of_4_bit_weights_are_compared_after_conversion(packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--verify-logits: transformers does not compute 8-bit or 4-bit"):
        convert(packed, tmp_path / "megatron", verify=True)
