"""DeepSeek models: which are read, what is refused, 8-bit weights, and layers for multi-token prediction."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from flagscale.errors import UserError
from flagscale_testing.conversion import (
    CASES,
    EXPERTS,
    LENGTH,
    make_model,
    same,
    tensors_of,
    training,
    write_data,
)
from flagscale_testing.ranks.forked import Run, run_all
from flagscale_testing.ranks.training import read_metrics
from megatron.flagscale.convert.block_scales import scaled
from megatron.flagscale.convert.convert import convert
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.hf_config import read_config, write_config
from megatron.flagscale.convert.megatron_args import checkpoint_arguments, task_arguments
from megatron.flagscale.convert.megatron_model import model_of
from megatron.flagscale.convert.model import Yarn
from megatron.flagscale.convert.tensors import entries
from megatron.flagscale.convert.torch_ranks import _place
from tests.convert.public_configs import CONFIGS

Models = Callable[[str], Path]
NAMES = [name for name, (family, _) in CONFIGS.items() if family.startswith("deepseek")]
MTP = "DeepSeek-V3, MTP"


def public(name: str, **changes: Any) -> dict[str, Any]:
    """Return the `config.json` of a published model with changes."""
    return {**CONFIGS[name][1], **changes}


@pytest.mark.parametrize("name", NAMES)
def test_a_model_survives_megatrons_arguments(name: str) -> None:
    family, config = CONFIGS[name]
    model = read_config(config, "config.json")
    assert model_of(checkpoint_arguments(model), model.vocab, "checkpoint", family) == model
    assert read_config(write_config(model, {}), "config.json", family) == model


def test_the_arguments_of_a_deepseek_v3() -> None:
    task = task_arguments(read_config(public("DeepSeek-R1"), "config.json"))
    assert "kv_channels" not in task
    expected = {
        "multi_latent_attention": True,
        "qk_layernorm": True,
        "rope_type": "yarn",
        "rotary_scaling_factor": 40.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "moe_layer_freq": "([0]*1+[1]*1)",
        "moe_shared_expert_intermediate_size": 40,
        "moe_ffn_hidden_size": 40,
        "ffn_hidden_size": 96,
        "moe_router_score_function": "sigmoid",
        "moe_router_enable_expert_bias": True,
        "moe_router_topk_scaling_factor": 2.5,
        "moe_router_dtype": "fp32",
        "moe_aux_loss_coeff": 0.0,
        "mtp_num_layers": 1,
    }
    assert {key: task[key] for key in expected} == expected
    assert not {"yarn_beta_fast", "yarn_original_max_position_embeddings", "moe_router_group_best"} & {*task}


def test_the_published_sizes_have_the_published_number_of_parameters() -> None:
    heads = {"num_attention_heads": 128, "num_key_value_heads": 128, "q_lora_rank": 1536, "kv_lora_rank": 512}
    widths = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
    large = {"hidden_size": 7168, "intermediate_size": 18432, "vocab_size": 129280, "num_hidden_layers": 61}
    experts = {"moe_intermediate_size": 2048, "n_routed_experts": 256, "first_k_dense_replace": 3}
    sizes = {**heads, **widths, **large, **experts, "num_nextn_predict_layers": 0}
    model = read_config(public("DeepSeek-R1", **sizes), "config.json")
    assert sum(entry.elements for entry in entries(model)) == pytest.approx(671e9, rel=1e-3)
    lite = {"hidden_size": 2048, "intermediate_size": 10944, "vocab_size": 102400, "num_hidden_layers": 27}
    few = {"num_attention_heads": 16, "num_key_value_heads": 16, "moe_intermediate_size": 1408}
    sizes = {**heads, **widths, **lite, **few, "n_routed_experts": 64, "q_lora_rank": None}
    model = read_config(public("DeepSeek-V2-Lite", **sizes), "config.json")
    assert sum(entry.elements for entry in entries(model)) == pytest.approx(15.7e9, rel=1e-3)


def test_groups_are_compared_by_the_best_expert_only_in_deepseek_v2() -> None:
    model = read_config(public("DeepSeek-V2"), "config.json")
    assert task_arguments(model)["moe_router_group_best"] == 1
    alike = read_config(public("DeepSeek-V2", num_experts_per_tok=3), "config.json")
    assert "moe_router_group_best" not in task_arguments(alike)
    trained = {**checkpoint_arguments(model), "moe_router_group_best": None}
    what = "moe_router_group_best = None; only 1 is supported in deepseek_v2\n.*`moe_router_group_best: 1`"
    with pytest.raises(UserError, match=what):
        model_of(trained, model.vocab, "checkpoint")


def test_yarn_of_kimi_k2_takes_arguments_that_the_engine_reads_only_without_mla() -> None:
    model = read_config(public("Kimi-K2, as a deepseek_v3", model_type="kimi_k2"), "config.json")
    assert model.rope
    assert model.rope.yarn == Yarn(4096, 1.0, 1.0, 1.0, 1.0)
    assert task_arguments(model)["yarn_beta_fast"] == 1.0
    assert write_config(model, {})["model_type"] == "deepseek_v3"


def test_a_loss_that_balances_experts_is_carried_over() -> None:
    model = read_config(public("DeepSeek-V2-Lite"), "config.json")
    arguments = checkpoint_arguments(model)
    kind, weight = "moe_router_load_balancing_type", "moe_aux_loss_coeff"
    assert (arguments[kind], arguments[weight]) == ("seq_aux_loss", 0.001)
    for kinds, weights, found in (
        (["aux_loss"], [0.02], (0.02, False)),
        (["global_aux_loss", "seq_aux_loss"], [0.1, 0.3], (0.3, True)),
        ("none", 0.5, (0.0, True)),
    ):
        again = model_of({**arguments, kind: kinds, weight: weights}, model.vocab, "checkpoint")
        written = write_config(again, {})
        assert (written["aux_loss_alpha"], written["seq_aux"]) == found


def test_layers_without_experts_come_first() -> None:
    model = read_config(public("DeepSeek-R1", num_hidden_layers=4, first_k_dense_replace=2), "config.json")
    arguments = checkpoint_arguments(model)
    assert arguments["moe_layer_freq"] == [0, 0, 1, 1]
    assert model_of({**arguments, "moe_layer_freq": 1}, model.vocab, "checkpoint").dense == 0
    for pattern in ([0, 1, 0, 1], 2):
        with pytest.raises(UserError, match="layers without experts only before all others"):
            model_of({**arguments, "moe_layer_freq": pattern}, model.vocab, "checkpoint")


def test_other_layers_of_megatron_name_the_same_tensors_otherwise() -> None:
    model = read_config(public("DeepSeek-R1"), "config.json")
    for entry in entries(model):
        if entry.also:
            assert _place(replace(entry, megatron=entry.also)) == _place(entry)
    names = {entry.megatron for entry in entries(model)}
    assert "mtp.layers.0.transformer_layer.mlp.router.expert_bias" in names
    assert "decoder.layers.0.mlp.linear_fc1.weight" in names
    assert "decoder.layers.1.mlp.shared_experts.linear_fc1.weight" in names
    assert not any(name.startswith("decoder.layers.0.mlp.experts") for name in names)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("DeepSeek-R1", {"num_key_value_heads": 2}, "it must equal `num_attention_heads`: 4"),
        ("DeepSeek-R1", {"rope_interleave": False}, "`rope_interleave` is False; only True is supported"),
        ("DeepSeek-R1", {"norm_topk_prob": False}, "`norm_topk_prob` is False; only True is supported"),
        ("DeepSeek-R1", {"scoring_func": "softmax"}, "`scoring_func` is 'softmax'; only 'sigmoid'"),
        ("DeepSeek-R1", {"topk_method": "greedy"}, "`topk_method` is 'greedy'; only 'noaux_tc'"),
        ("DeepSeek-R1", {"moe_layer_freq": 2}, "`moe_layer_freq` is 2; only 1 is supported"),
        ("DeepSeek-R1", {"first_k_dense_replace": 2}, "none of the 2 layers would have experts"),
        ("DeepSeek-R1", {"first_k_dense_replace": -1}, "is -1, not a whole number of at least 0"),
        ("DeepSeek-R1", {"n_shared_experts": 0}, "`n_shared_experts` is 0, not a positive whole number"),
        ("DeepSeek-R1", {"n_group": 3}, "32 experts cannot be divided into 3 groups"),
        ("DeepSeek-R1", {"n_group": 32, "topk_group": 8}, "`n_group` is 32; each group has 1 expert"),
        ("DeepSeek-R1", {"topk_group": 9}, "`topk_group` is 9; there are 8 groups"),
        ("DeepSeek-R1", {"topk_group": 1}, "1 groups hold fewer experts than `num_experts_per_tok`: 8"),
        ("DeepSeek-R1", {"num_experts_per_tok": 1}, "does not normalize the weight of a single expert"),
        ("DeepSeek-R1", {"kv_lora_rank": None}, "`kv_lora_rank` is missing or null"),
        ("DeepSeek-R1", {"q_lora_rank": 0}, "`q_lora_rank` is 0, not null or a positive whole number"),
        ("DeepSeek-R1", {"head_dim": 16}, "it must equal `qk_rope_head_dim`: 8"),
        ("DeepSeek-R1", {"qk_head_dim": 8}, "`qk_nope_head_dim` and `qk_rope_head_dim` together: 24"),
        ("DeepSeek-R1", {"index_topk": 64}, "`index_topk` is 64, but models of the family deepseek_v3"),
        ("DeepSeek-V2", {"topk_method": "greedy"}, "with `n_group` 8, only 'group_limited_greedy'"),
        ("DeepSeek-V2", {"hidden_size": 66}, "it must be a multiple of `num_attention_heads`: 4"),
        ("DeepSeek-V2", {"norm_topk_prob": True}, "`norm_topk_prob` is True; only False is supported"),
        ("DeepSeek-V2", {"num_nextn_predict_layers": 1}, "`num_nextn_predict_layers` is 1, but models"),
        ("DeepSeek-V2", {"aux_loss_alpha": "much"}, "`aux_loss_alpha` is 'much', not a number of at least 0"),
        ("DeepSeek-V2", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "use one of default, yarn"),
        (
            "DeepSeek-V2",
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "attention_factor": 1.0}},
            "`attention_factor` of the rotary positions is 1.0, which the kind 'yarn' does not have",
        ),
        (
            "DeepSeek-V2",
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "mscale": 0.7}},
            "has mscale 0.7, mscale_all_dim None: only both or none, or mscale 1, are supported",
        ),
        (
            "DeepSeek-V2",
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "beta_fast": "32"}},
            "`beta_fast` of the rotary scaling is '32', not a positive number",
        ),
        (
            "DeepSeek-V2",
            {"rope_scaling": {"type": "yarn", "factor": 4.0, "truncate": False}},
            "`truncate` of the rotary scaling is False; only True is supported",
        ),
        (
            "DeepSeek-R1",
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e5m2"}},
            "quantized weights cannot be converted, except fp8 with `weight_block_size`",
        ),
    ],
)
def test_what_megatron_cannot_compute_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_config(public(name, **changes), "config.json")
    assert message in str(caught.value)


def test_a_difference_between_the_libraries_is_reported(models: Models, tmp_path: Path) -> None:
    notices = convert(models("Moonlight") / "hf", tmp_path / "megatron").notices
    assert any("rms_norm_eps 1e-05 in Megatron and vLLM, but 1e-06 in transformers" in one for one in notices)


def test_layers_for_multi_token_prediction_survive_with_their_copies(models: Models, tmp_path: Path) -> None:
    stored = tensors_of(models(MTP) / "hf")
    assert {"model.layers.4.embed_tokens.weight", "model.layers.4.shared_head.head.weight"} <= stored.keys()
    convert(models(MTP) / "megatron", tmp_path / "back")
    assert same(tmp_path / "back", models(MTP) / "hf")
    assert yaml.safe_load((models(MTP) / "megatron" / "model.yaml").read_text())["mtp_num_layers"] == 1
    config = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config["num_nextn_predict_layers"] == 1


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_they_have_the_loss_that_transformers_computes(models: Models, tmp_path: Path) -> None:
    import transformers
    from torch.nn.functional import cross_entropy
    from transformers.modeling_layers import MtpModel

    case, (data, tokens) = CASES[MTP], write_data(tmp_path)
    layout = EXPERTS[0]
    argv = training(models(MTP) / "megatron", case, layout, data, tmp_path / "trained")
    curve = run_all([Run("mtp", layout.ranks, tuple(argv))], tmp_path / "runs")["mtp"]
    assert not curve.error
    (line,) = read_metrics(tmp_path / "runs" / "mtp" / "metrics.jsonl")
    main = transformers.DeepseekV3ForCausalLM.from_pretrained(models(MTP) / "hf").eval()
    main._keys_to_ignore_on_load_unexpected = [r"model\.layers\.4.*"]  # it expects those of layer 61
    heads = MtpModel.from_pretrained(main).eval()
    count = LENGTH - 1
    with torch.no_grad():
        hidden = main.model(tokens[:, :LENGTH]).last_hidden_state[:, :count]
        embedded, positions = heads.embed_tokens(tokens[:, 1 : count + 1]), torch.arange(count)[None]
        later = torch.full((count, count), float("-inf")).triu(1)[None, None]
        turns = heads.rotary_emb(embedded, positions)
        logits = heads._project_to_logits(heads.layers[0](embedded, hidden, turns, later, positions, None))
    assert line["mtp_1_loss"] == pytest.approx(cross_entropy(logits[0], tokens[0, 2:]).item(), abs=1e-5)


@pytest.mark.parametrize("format", ["hf", "megatron"])
def test_they_can_be_left_out(format: str, models: Models, tmp_path: Path) -> None:
    to = "megatron" if format == "hf" else "huggingface"
    made = convert(models(MTP) / format, tmp_path / "made", to=to, without_mtp=True)
    assert "left out: 1 layer for multi-token prediction (" in made.notices[-1]
    folder = tmp_path / "made" if to == "huggingface" else tmp_path / "back"
    if to == "megatron":
        convert(tmp_path / "made", folder)
    whole = tensors_of(models(MTP) / "hf")
    kept = tensors_of(folder)
    assert kept.keys() == {name for name in whole if not name.startswith("model.layers.4.")}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in kept.items())
    assert json.loads((folder / "config.json").read_text())["num_nextn_predict_layers"] == 0
    with pytest.raises(UserError, match="--without-mtp: has no effect"):
        convert(folder, tmp_path / "other", without_mtp=True)


def test_layers_that_are_named_but_not_stored_are_reported(copy: Callable[[str, str], Path]) -> None:
    """`save_pretrained` of transformers leaves them out, and keeps the key."""
    folder = copy(MTP, "hf")
    kept = {name: one for name, one in tensors_of(folder).items() if not name.startswith("model.layers.4.")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    made = convert(folder, folder.parent / "megatron")
    assert made.model.mtp == 0
    assert "names 1 layers for multi-token prediction, which are not stored" in made.notices[0]


def test_a_copy_that_differs_is_refused(copy: Callable[[str, str], Path]) -> None:
    folder = copy(MTP, "hf")
    stored = tensors_of(folder)
    stored["model.layers.4.embed_tokens.weight"][3, 4] += 1
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"differs from model\.embed_tokens\.weight; Megatron has one tensor"):
        convert(folder, folder.parent / "megatron")
    del stored["model.layers.4.embed_tokens.weight"], stored["model.layers.4.enorm.weight"]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"1 of \d+ tensors are missing: model.layers.4.enorm.weight"):
        convert(folder, folder.parent / "megatron")


def test_a_tied_model_has_one_tensor_for_all_copies(copy: Callable[[str, str], Path]) -> None:
    folder = copy(MTP, "hf")
    stored, config = tensors_of(folder), json.loads((folder / "config.json").read_text())
    embedding = stored["model.embed_tokens.weight"]
    del stored["lm_head.weight"]
    stored["model.layers.4.shared_head.head.weight"] = embedding.clone()
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    convert(folder, folder.parent / "megatron")
    convert(folder.parent / "megatron", folder.parent / "back")
    assert same(folder.parent / "back", folder)
    twice = {**stored, "lm_head.weight": embedding.clone()}
    save_file(twice, folder / "model.safetensors", {"format": "pt"})
    assert convert(folder, folder.parent / "twice").model.tied
    twice["model.layers.4.shared_head.head.weight"][3, 4] += 1
    save_file(twice, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"shared_head\.head\.weight differs from lm_head\.weight"):
        convert(folder, folder.parent / "other")


def test_the_bias_of_experts_is_never_rounded(models: Models, tmp_path: Path) -> None:
    convert(models(MTP) / "hf", tmp_path / "cast", to="huggingface", dtype="bfloat16")
    original = tensors_of(models(MTP) / "hf")
    for name, tensor in tensors_of(tmp_path / "cast").items():
        is_bias = name.endswith("e_score_correction_bias")
        assert torch.equal(tensor, original[name] if is_bias else original[name].bfloat16())


BLOCK = 16


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """A DeepSeek-V3 with 8-bit weights; the last blocks of some weights are smaller."""
    folder = tmp_path / "fp8"
    make_model(replace(CASES["DeepSeek-V3"], dtype="bfloat16"), folder)
    stored: dict[str, torch.Tensor] = {}
    for name, weight in tensors_of(folder).items():
        stored[name] = weight
        if "proj" in name:
            stored[name] = (weight.float() * 100).to(torch.float8_e4m3fn)
            blocks = [-(-size // BLOCK) for size in weight.shape]
            stored[f"{name}_scale_inv"] = torch.rand(blocks) / 100
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    form = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic"}
    config["quantization_config"] = {**form, "weight_block_size": [BLOCK, BLOCK]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_8_bit_weights_are_multiplied_by_the_scales_of_their_blocks(quantized: Path, tmp_path: Path) -> None:
    assert convert(quantized, tmp_path / "megatron").model.dtype == "bfloat16"
    convert(tmp_path / "megatron", tmp_path / "back")
    stored, back = tensors_of(quantized), tensors_of(tmp_path / "back")
    assert back.keys() == {name for name in stored if not name.endswith("_scale_inv")}
    for name, tensor in back.items():
        expected = stored[name]
        if f"{name}_scale_inv" in stored:
            scales = stored[f"{name}_scale_inv"]
            whole = scales.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
            rows, columns = expected.shape
            expected = (expected.float() * whole[:rows, :columns]).bfloat16()
        assert torch.equal(tensor, expected), name
    assert "quantization_config" not in json.loads((tmp_path / "back" / "config.json").read_text())


def test_scales_that_do_not_fit_are_refused(quantized: Path, tmp_path: Path) -> None:
    stored = tensors_of(quantized)
    name = "model.layers.0.self_attn.o_proj.weight_scale_inv"
    save_file({**stored, name: stored[name][:-1]}, quantized / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"stored as F8_E4M3 \[64, 48\], with scales F32 \[3, 3\]; expected"):
        convert(quantized, tmp_path / "megatron")
    del stored[name]
    save_file(stored, quantized / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"o_proj\.weight: stored as F8_E4M3; only F32, BF16, F16"):
        convert(quantized, tmp_path / "megatron")


def test_scales_of_other_tensors_and_precisions_are_refused(quantized: Path, tmp_path: Path) -> None:
    stored, name = tensors_of(quantized), "model.layers.0.self_attn.o_proj.weight_scale_inv"
    wrong = {"model.norm.weight_scale_inv": torch.rand(4), name: stored[name].to(torch.float8_e8m0fnu)}
    save_file({**stored, **wrong}, quantized / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError) as caught:
        convert(quantized, tmp_path / "megatron")
    assert "model.norm.weight is stored as BF16 [64], with scales F32 [4]; only matrices" in str(caught.value)
    assert "expected: F8_E4M3 with scales of shape [4, 3] in F32 or BF16 or F16" in str(caught.value)


def test_an_8_bit_output_of_a_tied_model_is_refused_without_scales(quantized: Path, tmp_path: Path) -> None:
    stored, config = tensors_of(quantized), json.loads((quantized / "config.json").read_text())
    stored["lm_head.weight"] = stored["lm_head.weight"].to(torch.float8_e4m3fn)
    save_file(stored, quantized / "model.safetensors", {"format": "pt"})
    (quantized / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    with pytest.raises(UserError, match=r"lm_head\.weight: stored as F8_E4M3; only F32, BF16, F16"):
        convert(quantized, tmp_path / "megatron")


def test_logits_of_8_bit_weights_are_compared_after_conversion(quantized: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--verify-logits: transformers does not compute 8-bit or 4-bit weights"
    ):
        convert(quantized, tmp_path / "megatron", verify=True)


def test_blocks_are_scaled_as_deepseek_defines_it() -> None:
    """576 rows, as `kv_a_proj_with_mqa` of DeepSeek-V3 has, are four blocks of 128 and one of 64."""
    weight = torch.randn(576, 130, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    scales = torch.rand(5, 2, generator=torch.Generator().manual_seed(1))
    found = scaled(weight, scales, (128, 128))
    assert found[575, 129] == (weight[575, 129].float() * scales[4, 1]).bfloat16()
    assert found[127, 128] == (weight[127, 128].float() * scales[0, 1]).bfloat16()
    assert found[128, 127] == (weight[128, 127].float() * scales[1, 0]).bfloat16()
    whole = scaled(weight, torch.full((1, 1), 0.5), (2**30, 2**30))  # only what is used is in memory
    assert torch.equal(whole, (weight.float() * 0.5).bfloat16())


def test_experts_are_not_added_to_a_model_that_has_some(models: Models, tmp_path: Path) -> None:
    from megatron.flagscale.convert.upcycle import Upcycling

    with pytest.raises(UserError, match="--experts: the model already has experts"):
        convert(models(MTP) / "hf", tmp_path / "moe", upcycling=Upcycling(4))


def test_every_setting_of_a_family_is_an_argument_of_the_engine() -> None:
    from megatron.flagscale.convert.megatron_args import engine_defaults

    for family in registry.families():
        assert {one.argument for one in family.settings} | {*family.task} <= engine_defaults().keys()
