"""`config.json` is read as transformers reads it; keys that may change the model otherwise are refused."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError

from flagscale.errors import UserError
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.files import read_json
from megatron.flagscale.convert.hf_config import read_config, write_config
from megatron.flagscale.convert.hf_defaults import _FILE, build_catalog, class_defaults
from megatron.flagscale.convert.megatron_args import checkpoint_arguments, model_of, task_arguments
from megatron.flagscale.convert.model import Model, Rope
from tests.convert.public_configs import CONFIGS, small
from tests.convert.test_hf_rope import effect

ROOT = Path(__file__).parents[2]
WITH_CLASS = ("llama", "mistral", "mixtral", "qwen2", "qwen3")
MODEL = Model("llama", 2, 64, 96, 4, 2, 16, 300, 4096, 1e-5, Rope(), False, "float32")


def differences(ours: Model, theirs: Any) -> dict[str, tuple[Any, Any]]:
    """Return the keys that we and transformers read differently, with both values."""
    found = {}
    for field, key in registry.load(ours.family).keys.items():
        value = getattr(theirs, key, None) or 0
        if field == "head_dim":
            value = value or theirs.hidden_size // theirs.num_attention_heads
        if field == "window" and value >= ours.positions:
            value = 0
        found[key] = (getattr(ours, field), value)
    assert ours.rope is not None
    found["rope_theta"] = (ours.rope.theta, theirs.rope_parameters["rope_theta"])
    found["tie_word_embeddings"] = (ours.tied, theirs.tie_word_embeddings)
    return {key: pair for key, pair in found.items() if pair[0] != pair[1]}


def refusal(config: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_config(config, "config.json")
    return str(caught.value)


@pytest.mark.slow
def test_the_catalog_is_that_of_the_installed_transformers() -> None:
    assert json.loads(json.dumps(build_catalog())) == json.loads(_FILE.read_text()), "run `make catalog`"


@pytest.mark.parametrize("family", WITH_CLASS)
def test_a_missing_key_has_the_default_of_the_class(family: str) -> None:
    from transformers import AutoConfig

    many = {"hidden_size": 2048, "num_attention_heads": 32, "num_key_value_heads": 8}
    whole = small(family, **many, max_position_embeddings=8192)
    for key in registry.load(family).keys.values():
        config = {name: value for name, value in whole.items() if name != key}
        assert differences(read_config(config, "config.json"), AutoConfig.for_model(**config)) == {}


@pytest.mark.parametrize("family", ["llama", "mistral", "mixtral"])
def test_null_sizes_are_derived_from_others(family: str) -> None:
    model = read_config(small(family, head_dim=None), "config.json")
    assert model.head_dim == 16
    if family == "llama":
        assert read_config(small(family, num_key_value_heads=None), "config.json").groups == 4


def test_the_rotary_base_of_mixtral_is_a_million() -> None:
    assert read_config(small("mixtral"), "config.json").rope == Rope(1e6)
    assert read_config(small("llama"), "config.json").rope == Rope(1e4)
    assert class_defaults("gpt_oss")["rope_theta"] == 150000.0


@pytest.mark.parametrize("name", CONFIGS)
def test_well_known_folders_are_read(name: str) -> None:
    family, config = CONFIGS[name]
    assert read_config(config, "config.json").family == family


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_what_is_written_as_the_same_model(name: str) -> None:
    from transformers import AutoConfig

    family, config = CONFIGS[name]
    model = read_config(config, "config.json")
    written = json.loads(json.dumps(write_config(model, {"eos_token_id": 2})))
    assert read_config(written, "written", family) == model
    theirs, again = (AutoConfig.for_model(**deepcopy(one)) for one in (config, written))
    for field, key in registry.load(family).keys.items():
        one, other = getattr(theirs, key, None), getattr(again, key)
        if field == "window":  # as long as the longest sequence or longer, it is left out
            one = one if one and one < model.positions else None
        assert one == other or (field == "head_dim" and one is None), key
    ropes = [{"original_max_position_embeddings": None, **one.rope_parameters} for one in (theirs, again)]
    assert effect(ropes[0]) == effect(ropes[1])
    assert (
        read_config(json.loads(again.to_json_string(use_diff=False)), "saved by transformers", family)
        == model
    )


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "qwen2",
            {"dual_chunk_attention_config": {"chunk_size": 9}},
            "vLLM computes attention in chunks by it",
        ),
        ("llama", {"logit_scale": 0.5}, "`logit_scale` is 0.5; only 1.0 is supported"),
        ("llama", {"final_logit_softcapping": 30.0}, "is 30.0, but models of the family llama are not known"),
        ("llama", {"query_pre_attn_scalar": 256}, "`query_pre_attn_scalar` is 256"),
        ("llama", {"no_rope_layers": [1, 0]}, "`no_rope_layers` is [1, 0]"),
        ("llama", {"sliding_window": 128}, "`sliding_window` is 128"),
        ("llama", {"layer_types": ["full_attention"]}, "`layer_types`"),
        ("llama", {"text_config": {}}, "`text_config` is {}"),
        ("llama", {"hidden_dropout": 0.1}, "`hidden_dropout` is 0.1"),
        ("llama", {"atention_bias": True}, "did you mean `attention_bias`?"),
        ("llama", {"compression_config": {"format": "int4"}}, "quantized weights cannot be converted"),
        ("llama", {"dropout": 0.1}, "`dropout` is 0.1; only 0.0"),
        (
            "mistral",
            {"layer_types": ["full_attention"] * 2, "sliding_window": 128},
            "`layer_types` is ['full",
        ),
        ("llama", {"attention_bias": 1}, "`attention_bias` is 1; only False"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantized weights cannot be converted"),
        ("llama", {"num_experts": 8}, "`num_experts` is 8"),
        ("mistral", {"attention_bias": True}, "`attention_bias` is True; only False"),
        ("mistral", {"sliding_window": 0}, "`sliding_window` is 0, not a positive whole number"),
        ("mixtral", {"router_jitter_noise": 0.1}, "`router_jitter_noise` is 0.1; only 0.0"),
        ("mixtral", {"num_experts_per_tok": 9}, "`num_experts_per_tok` is 9, but there are 8 experts"),
        ("mixtral", {"router_aux_loss_coef": "much"}, "`router_aux_loss_coef` is 'much'"),
        ("qwen2", {"use_sliding_window": True}, "`use_sliding_window` is True; only False"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "`layer_types` is ['sliding_attention', "),
        ("qwen3", {"mlp_only_layers": [1]}, "`mlp_only_layers` is [1]"),
        ("llama", {"partial_rotary_factor": 0.5}, "`partial_rotary_factor` is 0.5; only 1.0"),
        (
            "llama",
            {"rope_parameters": {"partial_rotary_factor": 0.5}},
            "`partial_rotary_factor` is 0.5; only",
        ),
        ("llama", {"rope_parameters": {"mscale": 0.7}}, "`mscale` of the rotary positions is 0.7"),
        (
            "llama",
            {"rope_scaling": {"type": "linear", "factor": 2.0, "attention_factor": 0.5}},
            "`attention_factor` of the rotary positions is 0.5, which the kind 'linear' does not have",
        ),
        ("llama", {"rope_parameters": {"factr": 2.0, "rope_type": "linear"}}, "did you mean `factor`?"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "`factor` of the rotary positions is missing"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.5}}, "requires a whole number"),
        ("llama", {"rope_scaling": {"rope_type": "linear", "factor": "2"}}, "is '2', not a positive number"),
        ("llama", {"rope_parameters": "default"}, "`rope_parameters` is 'default', not an object"),
        ("llama", {"rope_scaling": ["linear"]}, "`rope_scaling` is ['linear'], not an object"),
        ("llama", {"rope_theta": None}, "`rope_theta` is missing or null"),
        ("llama", {"rope_theta": -1.0}, "`rope_theta` is -1.0, not a positive number"),
        ("llama", {"rope_theta": "10000"}, "`rope_theta` is '10000'"),
        ("llama", {"rope_theta": float("nan")}, "`rope_theta` is nan"),
        ("llama", {"rope_scaling": {"rope_type": {}}}, "rotary scaling {} is not supported"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "default", "type": "linear"}},
            "transformers reads the first, and vLLM refuses the file",
        ),
        (
            "llama",
            {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1,
                    "high_freq_factor": 4,
                },
                "original_max_position_embeddings": 8192,
            },
            "is 4096 in the rotary positions, but 8192 beside them: transformers reads the first",
        ),
        ("llama", {"num_hidden_layers": "4"}, "`num_hidden_layers` is '4', not a positive whole number"),
        ("llama", {"num_hidden_layers": 4.0}, "`num_hidden_layers` is 4.0, not a positive whole number"),
        ("llama", {"num_hidden_layers": True}, "`num_hidden_layers` is True, not a positive whole number"),
        ("llama", {"num_hidden_layers": 10**9}, "more than any model has"),
        ("llama", {"vocab_size": 0}, "`vocab_size` is 0, not"),
        ("llama", {"vocab_size": [300]}, "`vocab_size` is [300], not"),
        ("llama", {"hidden_size": float("nan")}, "`hidden_size` is nan, not"),
        ("llama", {"hidden_size": 66}, "`hidden_size` 66 cannot be divided into 4 attention heads"),
        ("llama", {"rms_norm_eps": None}, "`rms_norm_eps` is missing or null"),
        ("llama", {"rms_norm_eps": True}, "`rms_norm_eps` is True, not a positive number"),
        ("llama", {"rms_norm_eps": float("inf")}, "`rms_norm_eps` is inf, not a positive number"),
        ("llama", {"attention_dropout": 1.5}, "`attention_dropout` is 1.5, not a number from 0 to 1"),
        ("llama", {"tie_word_embeddings": "false"}, "`tie_word_embeddings` is 'false', not true or false"),
        ("llama", {"dtype": ["bfloat16"]}, "`dtype` ['bfloat16'] is not supported"),
        ("llama", {"architectures": "LlamaForCausalLM"}, "`architectures` is 'LlamaForCausalLM', not a list"),
        ("llama", {"architectures": [None]}, "`architectures` is [None], not a list of names"),
        ("llama", {"architectures": None, "model_type": None}, "neither `architectures` nor `model_type`"),
        ("llama", {"model_type": 7}, "`model_type` is 7, not a name"),
        ("llama", {"model_type": "mistral"}, "transformers follows the first, vLLM the second"),
    ],
)
def test_what_is_not_understood_is_refused(family: str, changes: dict[str, Any], message: str) -> None:
    assert message in refusal(small(family, **changes))


@pytest.mark.parametrize("key", ["sliding_window", "logits_scaling", "mm_hidden_size", "max_seq_length"])
def test_a_key_of_other_models_is_not_taken_for_a_misspelling(key: str) -> None:
    message = refusal(small("llama", **{key: 4096}))
    assert f"`{key}` is 4096, but models of the family llama are not known to have it" in message
    assert "did you mean" not in message


def test_surplus_keys_are_all_reported_at_once() -> None:
    message = refusal(small("llama", logit_scale=0.5, num_experts=8, rope_theta=None))
    assert [name for name in ("logit_scale", "num_experts", "rope_theta") if f"`{name}` is" in message]
    assert message.count("config.json: ") == 3


@pytest.mark.parametrize("text", ["[]", "null", "7", '"{}"', "[{}]", "[" * 10**5, "{", "\ufeff{}", ""])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_file_without_an_object_is_refused(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=rf"{name}: (an object in braces is expected|invalid JSON)"):
        read_json(path)


@pytest.mark.parametrize(
    ("architecture", "hint"),
    [
        ("LlamaForCausalLm", "LlamaForCausalLM"),
        ("LLaMAForCausalLM", "LlamaForCausalLM"),
        ("LamaForCausalLM", "LlamaForCausalLM"),
        ("LlamaForCausalLMEagle", ""),
        ("Qwen3MoeForCausalLM", ""),
        ("Mistral3ForCausalLM", ""),
        ("Qwen4ForCausalLM", ""),
        ("MinstralForCausalLM", ""),
        ("LlamaForSequenceClassification", ""),
    ],
)
def test_a_hint_names_the_same_family_only(architecture: str, hint: str) -> None:
    message = refusal(small("llama", architectures=[architecture]))
    assert f"the architecture {architecture} is not supported; known: " in message
    assert "LlamaForCausalLM, MistralForCausalLM, " in message
    assert ("did you mean" in message) == bool(hint)
    assert f"did you mean `{hint}`?" in message or not hint


def test_a_model_type_without_architectures_gets_the_same_kind_of_hint() -> None:
    assert "did you mean `llama`?" in refusal({"model_type": "Llama"})
    assert "did you mean" not in refusal({"model_type": "qwen3_moe"})


@pytest.mark.parametrize("family", ["mistral", "mixtral"])
def test_a_window_is_carried_to_megatron_and_back(family: str) -> None:
    model = read_config(small(family, sliding_window=1024), "config.json")
    assert model.window == 1024
    assert task_arguments(model)["window_size"] == "1023,0"
    arguments = checkpoint_arguments(model)
    assert arguments["window_size"] == (1023, 0)
    assert model_of(arguments, model.vocab, "checkpoint", family) == model
    assert write_config(model, {})["sliding_window"] == 1024
    with pytest.raises(UserError, match="the model is not llama"):
        model_of(
            checkpoint_arguments(replace(model, family="mistral", experts=0)), 300, "checkpoint", "llama"
        )


def test_dropout_is_carried_to_megatron_whose_default_is_another() -> None:
    model = read_config(small("llama", attention_dropout=0.25), "config.json")
    assert task_arguments(model) | {"attention_dropout": 0.25, "hidden_dropout": 0.0} == task_arguments(model)
    assert model_of(checkpoint_arguments(model), 300, "checkpoint", "llama") == model
    assert task_arguments(MODEL)["attention_dropout"] == 0.0


def test_slips_are_refused_or_read_as_by_transformers() -> None:
    from transformers import AutoConfig

    chance, read = random.Random(1), 0
    odd = [None, True, -1, 0, 4.0, 10**400, float("nan"), "", "4", [], [[]], {}, {"rope_type": []}, "llama"]
    bases = [config for _, config in CONFIGS.values()]
    keys = sorted({key for config in bases for key in config} | {"rope_parameters", "tie_word_embeddings"})
    for _ in range(1500):
        config = deepcopy(chance.choice(bases))
        for key in chance.sample(keys, chance.randint(1, 4)):
            target = config
            if isinstance(config.get(key), dict) and config[key] and chance.random() < 0.5:
                target, key = config[key], chance.choice(sorted(config[key]))
            if chance.random() < 0.3:
                target.pop(key, None)
            else:
                target[key] = deepcopy(chance.choice(odd))
        with suppress(UserError):
            model = read_config(config, "config.json")
            written = json.loads(json.dumps(write_config(model, {})))
            assert read_config(written, "written", model.family) == model
            read += 1
            named = {**config, "model_type": registry.load(model.family).model_type}
            with suppress(StrictDataclassError):  # transformers also checks the types of harmless keys
                assert differences(model, AutoConfig.for_model(**named)) == {}, config
    assert read > 200


VLLM_OPENS = """
import json, sys, tempfile
from copy import deepcopy
from pathlib import Path
from transformers import AutoConfig
from vllm.transformers_utils.config import get_config
from megatron.flagscale.convert.families import registry
from megatron.flagscale.convert.hf_config import read_config, write_config
from tests.convert.public_configs import CONFIGS
for name, (family, config) in CONFIGS.items():
    with tempfile.TemporaryDirectory() as folder:
        written = write_config(read_config(config, name), {"eos_token_id": 2})
        Path(folder, "config.json").write_text(json.dumps(written))
        opened = get_config(folder, trust_remote_code=False)
    theirs = AutoConfig.for_model(**deepcopy(config))
    assert opened.architectures == [registry.load(family).architecture]
    for key in registry.load(family).keys.values():
        expected = getattr(theirs, key, None)
        assert key in ("head_dim", "sliding_window") or getattr(opened, key) == expected, (name, key)
    assert opened.rope_parameters["rope_theta"] == theirs.rope_parameters["rope_theta"]
    assert opened.tie_word_embeddings == theirs.tie_word_embeddings
print("all of", len(CONFIGS))
"""


@pytest.mark.slow
def test_vllm_opens_what_is_written() -> None:
    words = [sys.executable, "-c", VLLM_OPENS]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == [f"all of {len(CONFIGS)}"], done.stderr[-3000:]
