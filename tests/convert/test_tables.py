"""The pure parts of the converter: names, shapes, configurations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flagscale.errors import UserError
from flagscale_testing.packages import write_package
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.families.registry import families, names
from megatron.flagscale.convert.hf_config import read_config, write_config
from megatron.flagscale.convert.megatron_args import checkpoint_arguments
from megatron.flagscale.convert.megatron_model import model_of
from megatron.flagscale.convert.model import Model, Rope
from megatron.flagscale.convert.tensors import entries

LLAMA = Model(
    family="llama",
    layers=2,
    hidden=8,
    ffn=12,
    heads=4,
    groups=2,
    head_dim=2,
    vocab=10,
    positions=16,
    norm_eps=1e-5,
    rope=Rope(),
    tied=False,
    dtype="float32",
)
MIXTRAL = replace(LLAMA, family="mixtral", experts=3, topk=2, settings={"moe_aux_loss_coeff": 0.02})
_GEMMA = {"query_pre_attn_scalar": 3, "final_logit_softcapping": None}
MODELS = (
    LLAMA,
    replace(LLAMA, family="gemma2", window=5, settings={**_GEMMA, "attn_logit_softcapping": 50.0}),
    replace(
        LLAMA,
        family="gemma3",
        window=5,
        rope=Rope(1000000.0, "linear", 8.0),
        settings={**_GEMMA, "window_attn_skip_freq": 2, "window_rotary_base": 10000.0},
    ),
    replace(LLAMA, tied=True, rope=Rope(500000.0, "llama3", 32.0)),
    replace(LLAMA, rope=Rope(10000.0, "linear", 4.0), dtype="bfloat16"),
    MIXTRAL,
    replace(LLAMA, family="mistral"),
    replace(LLAMA, family="olmo2"),
    replace(LLAMA, family="qwen2", groups=4),
    replace(LLAMA, family="qwen3", head_dim=6, dtype="float16"),
)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.family)
def test_a_configuration_is_written_and_read_back(model: Model) -> None:
    assert read_config(write_config(model, {}), "here", model.family) == model
    assert model_of(checkpoint_arguments(model), model.vocab, "there", model.family) == model


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.family)
def test_the_parts_of_an_entry_have_as_many_elements_as_the_whole(model: Model) -> None:
    for entry in entries(model):
        assert sum(math.prod(part) for part in entry.parts) == entry.elements
        assert len(entry.parts) == len(entry.huggingface)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.family)
def test_names_are_unique(model: Model) -> None:
    names = [name for entry in entries(model) for name in entry.huggingface]
    assert len(names) == len(set(names))
    places = [(entry.megatron, entry.expert) for entry in entries(model)]
    assert len(places) == len(set(places))


def test_every_layer_and_expert_has_an_entry() -> None:
    names = {name for entry in entries(MIXTRAL) for name in entry.huggingface}
    assert "model.layers.1.block_sparse_moe.experts.2.w3.weight" in names
    assert not any("layers.2." in name or "experts.3." in name for name in names)


def test_a_tied_model_has_no_separate_output() -> None:
    assert "lm_head.weight" in {name for entry in entries(LLAMA) for name in entry.huggingface}
    tied = replace(LLAMA, tied=True)
    assert "lm_head.weight" not in {name for entry in entries(tied) for name in entry.huggingface}


def test_configurations_of_both_versions_of_transformers_are_read() -> None:
    new = write_config(replace(LLAMA, rope=Rope(500000.0, "llama3", 8.0), dtype="bfloat16"), {})
    old = {key: value for key, value in new.items() if key not in ("rope_parameters", "dtype")}
    only_new = {
        key: value for key, value in new.items() if key not in ("rope_theta", "rope_scaling", "torch_dtype")
    }
    assert read_config(old, "old") == read_config(only_new, "new") == read_config(new, "both")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["LlamaForCausalM"]}, "did you mean `LlamaForCausalLM`?"),
        ({"hidden_act": "gelu"}, "`hidden_act` is 'gelu'; only 'silu'"),
        ({"attention_bias": True}, "`attention_bias` is True"),
        ({"hidden_size": None}, "`hidden_size` is missing"),
        ({"num_hidden_layers": "two"}, "`num_hidden_layers` is 'two', not a positive whole number"),
        ({"quantization_config": {"bits": 4}}, "`quantization_config`"),
        ({"rope_parameters": {"rope_type": "longrope", "factor": 4.0}}, "rotary scaling 'longrope'"),
        ({"rope_parameters": {"rope_theta": 1000.5}}, "not a whole number"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "`partial_rotary_factor` is 0.5; only 1.0"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, "`low_freq_factor`"),
        ({"dtype": "int8"}, "`dtype` int8"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot be divided into 3 groups"),
    ],
)
def test_unsupported_settings_are_refused(changes: dict[str, object], message: str) -> None:
    config = {**write_config(LLAMA, {}), **changes}
    with pytest.raises(UserError) as caught:
        read_config(config, "config.json")
    assert message in str(caught.value)


def test_a_window_matters_also_if_it_is_the_default_of_transformers() -> None:
    longer = {**write_config(replace(LLAMA, family="mistral", positions=8192), {}), "sliding_window": 8192}
    assert read_config(longer, "config.json").window == 0
    del longer["sliding_window"]
    assert read_config(longer, "config.json").window == 4096


def test_all_mistakes_are_reported_at_once() -> None:
    config = {**write_config(LLAMA, {}), "hidden_act": "gelu", "mlp_bias": True, "vocab_size": 0}
    with pytest.raises(UserError) as caught:
        read_config(config, "config.json")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"swiglu": False}, "swiglu = False"),
        ({"add_bias_linear": True}, "add_bias_linear = True"),
        ({"norm_position": "post"}, "norm_position = 'post', but 'pre' in"),
        ({"norm_position": "both"}, "norm_position = 'both'"),
        ({"add_qkv_bias": True, "qk_layernorm": True}, "the model does not match any family"),
        (
            {"num_experts": 4, "moe_router_topk": 2, "moe_shared_expert_intermediate_size": 8},
            "moe_shared_expert",
        ),
    ],
)
def test_a_checkpoint_that_matches_no_family_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        model_of({**checkpoint_arguments(LLAMA), **changes}, 10, "checkpoint")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    [
        (MIXTRAL, {"moe_router_load_balancing_type": "sinkhorn"}, "= 'sinkhorn', but a loss"),
        (MIXTRAL, {"moe_router_load_balancing_type": ["quantile_balancing"]}, "= ['quantile_balancing']"),
        (MIXTRAL, {"moe_apply_probs_on_input": True}, "moe_apply_probs_on_input = True, but"),
        (MIXTRAL, {"moe_mlp_glu_interleave_size": 32}, "moe_mlp_glu_interleave_size = 32, but None in"),
        (MIXTRAL, {"moe_shared_expert_glu_interleave_size": 32}, "glu_interleave_size = 32"),
        (
            MODELS[3],
            {"rotary_seq_len_interpolation_factor": 4},
            "rotary_seq_len_interpolation_factor = 4, but None with use_rope_scaling",
        ),
    ],
)
def test_an_argument_that_the_family_does_not_have_is_refused(
    model: Model, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        model_of({**checkpoint_arguments(model), **changes}, 10, "checkpoint", model.family)
    assert message in str(caught.value)


@pytest.mark.parametrize("pattern", [None, [1, 0]])
def test_windows_that_a_gemma_does_not_have_are_refused(pattern: list[int] | None) -> None:
    for family in ("gemma2", "gemma3"):
        (model,) = (one for one in MODELS if one.family == family)
        arguments = {**checkpoint_arguments(model), "window_attn_skip_freq": pattern}
        with pytest.raises(UserError) as caught:
            model_of(arguments, 10, "checkpoint", family)
        assert f"window_attn_skip_freq = {pattern!r}" in str(caught.value)


def test_the_wrong_family_is_refused_and_matching_ones_are_listed() -> None:
    with pytest.raises(UserError) as caught:
        model_of(checkpoint_arguments(LLAMA), 10, "checkpoint", "qwen3")
    assert "use --model llama or aquila" in str(caught.value)


def test_the_task_file_of_a_family_has_only_arguments_of_the_engine(
    models: Callable[[str], Path],
) -> None:
    import json

    import yaml

    catalog = Path(__file__).parents[2] / "flagscale" / "engines" / "catalog" / "megatron.json"
    known = {name.replace("-", "_") for name in json.loads(catalog.read_text())["arguments"]}
    for name in ("Llama 3.2, tied", "Mixtral", "Qwen3"):
        task = yaml.safe_load((models(name) / "megatron" / "model.yaml").read_text())
        assert set(task) <= known


def test_a_broken_family_matters_only_if_it_is_requested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = "from megatron.flagscale.convert.families.llama import LLAMA"
    targets = {"aa_absent": "no_such_module:FAMILY", "zz_named": "mislabelled:LLAMA"}
    write_package(tmp_path, "mislabelled", {"families": targets}, source)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert [family.name for family in families()] == [*registry.BUILT_IN]
    reported = capsys.readouterr().err
    assert "note: skipped: the family `aa_absent` (no_such_module:FAMILY" in reported
    assert "registered by mislabelled 1.0) calls itself `llama`" in reported
    for wanted in targets:
        with pytest.raises(UserError, match=f"the family `{wanted}` .*\n    fix or uninstall the package"):
            families(wanted)


def test_families_are_named_only_in_their_own_files() -> None:
    import ast

    root = Path(__file__).parents[2]
    files = [*(root / "megatron/flagscale/convert").glob("*.py"), *(root / "tools/checkpoint").glob("*.py")]
    for file in files:
        texts = {
            node.value for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Constant)
        }
        assert texts.isdisjoint(names()), file


def test_no_two_families_are_alike() -> None:
    known = list(families())
    kinds = {(one.architecture, one.has_experts, *sorted(one.arguments.items())) for one in known}
    assert len(kinds) == len(known)
