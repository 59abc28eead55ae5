"""Descriptions of models with the longest sequence that vLLM 0.32 accepts for each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 64,
    "max_position_embeddings": 256,
}
_OTHERS = {
    "llama": "LlamaForCausalLM",
    "bert": "BertModel",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "opt": "OPTForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "cohere": "CohereForCausalLM",
    "olmo3": "Olmo3ForCausalLM",
}


@dataclass(frozen=True)
class Case:
    """A `config.json`, the largest `max_model_len` that vLLM accepts for it, further arguments and files."""

    config: Mapping[str, Any]
    longest: int
    arguments: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


def _llama(longest: int, /, **changes: Any) -> Case:
    return Case({**LLAMA, **changes}, longest)


def _other(model_type: str, longest: int, /, *without: str, **changes: Any) -> Case:
    given = {**LLAMA, "model_type": model_type, "architectures": [_OTHERS[model_type]], **changes}
    tokenizer = {"tokenizer_config.json": '{"model_max_length": 128}'}
    return Case({key: value for key, value in given.items() if key not in without}, longest, files=tokenizer)


def _rope(longest: int, kind: str, **parameters: Any) -> Case:
    return _llama(longest, rope_scaling={"rope_type": kind, **parameters})


_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
_LONG = {"short_factor": [1.0] * 16, "long_factor": [1.0] * 16, "original_max_position_embeddings": 64}
_TWICE = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}
_NONE = {"rope_type": "default", "rope_theta": 10000.0}
_TYPES = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 64}
P = "max_position_embeddings"

CASES = {
    "no scaling": _llama(256),
    "null": _llama(256, rope_scaling=None, rope_parameters=None),
    "empty": _llama(256, rope_scaling={}),
    "default": _rope(256, "default"),
    "default with a factor": _rope(512, "default", factor=2.0),
    "linear": _rope(512, "linear", factor=2.0),
    "linear by its old key": _llama(512, rope_scaling={"type": "linear", "factor": 2.0}),
    "linear by a fraction": _rope(384, "linear", factor=1.5),
    "linear by less than one": _rope(128, "linear", factor=0.5),
    "linear, whole number": _rope(512, "linear", factor=2),
    "dynamic": _rope(512, "dynamic", factor=2.0),
    "llama3": _rope(256, "llama3", factor=8.0, **_LLAMA3),
    "yarn": _rope(256, "yarn", factor=4.0),
    "yarn with an original length": _rope(256, "yarn", factor=4.0, original_max_position_embeddings=64),
    "yarn by its old key": _llama(256, rope_scaling={"type": "yarn", "factor": 4.0}),
    "longrope": _other("phi3", 256, rope_scaling={"type": "longrope", **_LONG}),
    "su": _other("phi3", 256, rope_scaling={"type": "su", **_LONG}, original_max_position_embeddings=64),
    "mrope": _llama(256, rope_scaling={"type": "mrope", "mrope_section": [4, 6, 6]}),
    "mrope with a factor": _llama(
        512, rope_scaling={"type": "mrope", "mrope_section": [4, 6, 6], "factor": 2.0}
    ),
    "version 5": _llama(512, rope_parameters=_TWICE),
    "version 5, yarn": _llama(256, rope_parameters={**_TWICE, "rope_type": "yarn"}),
    "old key beside the new one": _llama(512, rope_scaling=_TWICE, rope_parameters=_NONE),
    "new key beside the old one": _llama(256, rope_scaling=_NONE, rope_parameters=_TWICE),
    "null beside the new key": _llama(512, rope_scaling=None, rope_parameters=_TWICE),
    "per layer type": _other(
        "olmo3", 512, **_TYPES, rope_parameters={"full_attention": _TWICE, "sliding_attention": _NONE}
    ),
    "per layer type, yarn": _other(
        "olmo3",
        256,
        **_TYPES,
        rope_parameters={"full_attention": {**_TWICE, "rope_type": "yarn"}, "sliding_attention": _NONE},
    ),
    "Gemma 3": _other(
        "gemma3_text", 256, **_TYPES, rope_parameters={"full_attention": _TWICE, "sliding_attention": _NONE}
    ),
    "Gemma 3, old form": _other("gemma3_text", 256, rope_scaling={"rope_type": "linear", "factor": 8.0}),
    "a smaller max_sequence_length": _llama(128, max_sequence_length=128),
    "a greater max_sequence_length": _llama(256, max_sequence_length=512),
    "seq_length": _llama(128, seq_length=128),
    "n_positions": _llama(128, n_positions=128),
    "max_seq_len": _llama(128, max_seq_len=128),
    "max_seq_length": _llama(128, max_seq_length=128),
    "seq_len": _llama(128, seq_len=128),
    "max_target_positions": _llama(128, max_target_positions=128),
    "a greater model_max_length": _llama(1024, model_max_length=1024),
    "a smaller model_max_length": _llama(128, model_max_length=128),
    "model_max_length, scaled": _llama(1024, model_max_length=512, rope_scaling=_TWICE),
    "no key": _other("llama", 2048, P),
    "no key but a greater one": _other("llama", 2048, P, max_sequence_length=4096),
    "no key, Mistral": _other("mistral", 131072, P),
    "no key, Qwen 2": _other("qwen2", 32768, P),
    "no key, GPT-2": _other("gpt2", 1024, P),
    "GPT-2": _other("gpt2", 2048, P, n_positions=2048),
    "GPT-2 by another name": _other("gpt2", 2048, max_position_embeddings=2048),
    "OPT": _other("opt", 256, word_embed_proj_dim=128, ffn_dim=128),
    "a window": _other("mistral", 256, sliding_window=128),
    "tokenizer's length": Case(LLAMA, 256, files={"tokenizer_config.json": '{"model_max_length": 128}'}),
    "no window": Case(
        {**LLAMA, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 128},
        128,
        {"disable_sliding_window": True},
    ),
    "no window of zero": Case(
        {**LLAMA, "model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": 0},
        256,
        {"disable_sliding_window": True},
    ),
    "no window, stretched": Case(
        {
            **LLAMA,
            "model_type": "mistral",
            "architectures": ["MistralForCausalLM"],
            "sliding_window": 128,
            "rope_parameters": _TWICE,
        },
        256,
        {"disable_sliding_window": True},
    ),
    "a window that is not used": Case(
        {**LLAMA, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "sliding_window": 128},
        256,
        {"disable_sliding_window": True},
    ),
    "overridden length": Case(LLAMA, 512, {"hf_overrides": {P: 512}}),
    "overridden by a smaller length": Case(LLAMA, 128, {"hf_overrides": {P: 128}}),
    "overridden rotary parameters": Case(LLAMA, 512, {"hf_overrides": {"rope_parameters": _TWICE}}),
    "overridden rotary scaling": Case(LLAMA, 512, {"hf_overrides": {"rope_scaling": _TWICE}}),
    "overridden with yarn": Case(
        LLAMA, 256, {"hf_overrides": {"rope_parameters": {**_TWICE, "rope_type": "yarn"}}}
    ),
    "overridden scaling replaced": Case(
        {**LLAMA, "rope_scaling": _TWICE}, 256, {"hf_overrides": {"rope_parameters": _NONE}}
    ),
    "sentences": Case(LLAMA, 128, files={"sentence_bert_config.json": '{"max_seq_length": 128}'}),
    "stretched sentences": Case(
        {**LLAMA, "rope_scaling": _TWICE},
        128,
        files={"sentence_bert_config.json": '{"max_seq_length": 128}'},
    ),
    "Aquila": Case({**LLAMA, "model_type": "aquila", "architectures": ["AquilaForCausalLM"]}, 256),
    "Aquila, no key": Case(
        {
            key: value
            for key, value in {
                **LLAMA,
                "model_type": "aquila",
                "architectures": ["AquilaForCausalLM"],
            }.items()
            if key != P
        },
        2048,
    ),
    "a pooling model": _other("bert", 128, position_embedding_type="absolute"),
    "a pooling model with other positions": _other("bert", 256),
    "generating with absolute positions": _other("llama", 256, position_embedding_type="absolute"),
}
