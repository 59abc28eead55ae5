"""Keys of `config.json` that may change the model, and unknown architectures, are refused with hints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flagscale.errors import UserError
from megatron.flagscale.convert.convert import _write_config
from megatron.flagscale.convert.hf_config import read_config
from megatron.flagscale.convert.tokenizer import Tokenizer
from tests.convert.public_configs import small


def refusal(config: Any) -> str:
    with pytest.raises(UserError) as caught:
        read_config(config, "config.json")
    return str(caught.value)


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
        ("llama", {"attention_bias": True}, "`attention_bias` is True; only False"),
        ("llama", {"mlp_bias": True}, "`mlp_bias` is True; only False"),
        ("llama", {"quantization_config": {"quant_method": "fp8"}}, "quantized weights cannot be converted"),
        ("llama", {"num_experts": 8}, "`num_experts` is 8"),
        ("mistral", {"attention_bias": True}, "`attention_bias` is True; only False"),
        ("mistral", {"sliding_window": 0}, "`sliding_window` is 0, not a positive whole number"),
        ("mixtral", {"router_jitter_noise": 0.1}, "`router_jitter_noise` is 0.1; only 0.0"),
        ("mixtral", {"num_experts_per_tok": 9}, "`num_experts_per_tok` is 9, but there are 8 experts"),
        ("mixtral", {"router_aux_loss_coef": "much"}, "`router_aux_loss_coef` is 'much'"),
        (
            "qwen2",
            {"head_dim": 24},
            "`head_dim` is 24; vLLM computes it as hidden_size / num_attention_heads: 16",
        ),
        ("qwen2", {"use_sliding_window": True}, "`use_sliding_window` is True; only False"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 2}, "`layer_types` is ['sliding_attention', "),
        ("qwen3", {"mlp_only_layers": [1]}, "`mlp_only_layers` is [1]"),
        ("qwen3_moe", {"mlp_only_layers": [1]}, "`mlp_only_layers` is [1]; only null or [] is supported"),
        ("qwen3_moe", {"decoder_sparse_step": 2}, "`decoder_sparse_step` is 2; only 1 is supported"),
        (
            "qwen3_moe",
            {"num_experts": 8, "num_local_experts": 9},
            "`num_experts` is 8, but `num_local_experts`, which means the same, is 9",
        ),
        (
            "qwen3_moe",
            {"num_experts_per_tok": 1, "norm_topk_prob": True},
            "`num_experts_per_tok` is 1; Megatron does not normalize the weight of a single expert",
        ),
        ("gemma2", {"use_bidirectional_attention": True}, "`use_bidirectional_attention` is True; only None"),
        ("gemma2", {"hidden_activation": "silu"}, "`hidden_activation` is 'silu'; only 'gelu_pytorch_tanh'"),
        ("gemma2", {"hidden_act": "gelu"}, "`hidden_act` is 'gelu'; only 'gelu_pytorch_tanh' is supported"),
        ("gemma2", {"sliding_window": None}, "`sliding_window` is None; only a number less than 4096"),
        (
            "gemma2",
            {"cache_implementation": "hybrid", "sliding_window": 4096},
            "`sliding_window` is 4096; only a number less than 4096",
        ),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "only null or ['sliding_attention', 'full_att"),
        ("gemma2", {"attn_logit_softcapping": 0}, "`attn_logit_softcapping` is 0, not null or a positive"),
        ("gemma2", {"query_pre_attn_scalar": None}, "`query_pre_attn_scalar` is missing or null"),
        (
            "gemma3",
            {"use_bidirectional_attention": True},
            "`use_bidirectional_attention` is True; only False",
        ),
        ("gemma3", {"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping` is 50.0; only None"),
        ("gemma3", {"sliding_window_pattern": 0}, "`sliding_window_pattern` is 0, not a positive whole"),
        (
            "gemma3",
            {"sliding_window_pattern": 2, "_sliding_window_pattern": 3},
            "`sliding_window_pattern` is 2, but `_sliding_window_pattern`, which means the same, is 3",
        ),
        ("gemma3", {"layer_types": ["full_attention"] * 2}, "only null or ['sliding_attention', 'sliding_"),
        ("gemma3", {"rope_local_base_freq": None}, "`rope_local_base_freq` is missing or null"),
        ("gemma3", {"rope_parameters": {"rope_theta": 1e4}}, "not an object with 'full_attention' and 'sl"),
        (
            "gemma3",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "only `rope_type` 'default' and a `rope_theta` are supported",
        ),
        ("gemma3", {"rope_parameters": {"full_attention": [1]}}, "'full_attention' in `rope_parameters` is"),
        ("gemma3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rotary scaling 'yarn' is not"),
        (
            "gemma3",
            {"rope_scaling": {"type": "linear", "factor": 8.0}},
            "transformers does not read `type` there: name the kind `rope_type`",
        ),
        (
            "gemma3",
            {"_sliding_window_pattern": 2},
            "transformers reads only `sliding_window_pattern`, without which it is 6",
        ),
        ("gpt_oss", {"experts_per_token": 2}, "`experts_per_token` is 2; `num_experts_per_tok` is 4"),
        ("gpt_oss", {"experts_per_token": "4"}, "`experts_per_token` is '4'; `num_experts_per_tok` is 4"),
        (
            "gpt_oss",
            {"num_experts_per_tok": 2, "experts_per_token": 4},
            "`experts_per_token` is 4; `num_experts_per_tok` is 2",
        ),
        ("llama_biased", {"qkv_bias": False}, "`qkv_bias` is False; only True is supported"),
        ("llama_biased", {"qkv_bias": None}, "`qkv_bias` is None; only True is supported"),
        ("qwen3", {"head_dim": 25}, "a head has 25 numbers, but rotary positions need an even number"),
        ("llama", {"hidden_size": 68, "head_dim": None}, "a head has 17 numbers, but rotary positions"),
        ("qwen3_moe", {"router_aux_loss_coef": False}, "`router_aux_loss_coef` is False, not a number of at"),
        (
            "llama",
            {"hidden_size": 66, "head_dim": 16},
            "`hidden_size` 66 cannot be divided into 4 attention heads",
        ),
        ("olmo2", {"attention_bias": True}, "`attention_bias` is True; only False is supported"),
        ("olmo2", {"layer_types": ["sliding_attention"] * 2}, "`layer_types` is ['sliding_attention', "),
        ("olmo2", {"clip_qkv": 8.0}, "`clip_qkv` is 8.0"),
        ("qwen2_moe", {"qkv_bias": False}, "`qkv_bias` is False; only True is supported"),
        ("qwen2_moe", {"shared_expert_intermediate_size": 0}, "`shared_expert_intermediate_size` is 0"),
        (
            "llama",
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "mscale": 0.7, "mscale_all_dim": 0.7}},
            "only DeepSeek's families can have other values than 1 and 0",
        ),
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
    needed = {"sliding_window": 1024} if family.startswith("gemma") else {}
    needed = {"attention_bias": True, "mlp_bias": True} if family == "llama_biased" else needed
    assert message in refusal(small(family, **{**needed, **changes}))


@pytest.mark.parametrize("key", ["sliding_window", "logits_scaling", "mm_hidden_size", "max_seq_length"])
def test_a_key_of_other_models_is_not_taken_for_a_misspelling(key: str) -> None:
    message = refusal(small("llama", **{key: 4096}))
    assert f"`{key}` is 4096, but models of the family llama are not known to have it" in message
    assert "did you mean" not in message


def test_what_would_be_refused_is_not_written(tmp_path: Path) -> None:
    """vLLM cannot load a Qwen2 whose heads have another size; Megatron can train it (`kv_channels`)."""
    model = replace(read_config(small("qwen2"), "config.json"), head_dim=24)
    with pytest.raises(UserError, match=r"config\.json of the family qwen2: `head_dim` is 24; vLLM computes"):
        _write_config(tmp_path, model, Tokenizer())
    assert not (tmp_path / "config.json").exists()


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("qwen3", "num_attention_heads"),
        ("qwen3", "num_key_value_heads"),
        ("qwen3", "num_hidden_layers"),
        ("llama", "hidden_size"),
        ("mixtral", "num_local_experts"),
    ],
)
def test_no_other_mistake_follows_from_a_wrong_size(family: str, key: str) -> None:
    config = small(family, **({"layer_types": ["full_attention"] * 2} if family == "qwen3" else {}))
    message = refusal({**config, "head_dim": None, key: "4"})
    assert message == f"- config.json: `{key}` is '4', not a positive whole number"


def test_surplus_keys_are_all_reported_at_once() -> None:
    message = refusal(small("llama", logit_scale=0.5, num_experts=8, rope_theta=None))
    assert [name for name in ("logit_scale", "num_experts", "rope_theta") if f"`{name}` is" in message]
    assert message.count("config.json: ") == 3


@pytest.mark.parametrize(
    ("architecture", "hint"),
    [
        ("LlamaForCausalLm", "LlamaForCausalLM"),
        ("LLaMAForCausalLM", "LlamaForCausalLM"),
        ("LamaForCausalLM", "LlamaForCausalLM"),
        ("LlamaForCausalLMEagle", ""),
        ("Qwen3NextForCausalLM", ""),
        ("Mistral3ForCausalLM", ""),
        ("Qwen4ForCausalLM", ""),
        ("Gemma3ForConditionalGeneration", ""),
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
    assert "did you mean" not in refusal({"model_type": "qwen3_next"})
