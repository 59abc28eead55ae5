"""The keys of `config.json` in well-known folders, with small sizes: name -> (family, content).

Written from what is publicly known about these folders, in the forms of versions 4 and 5 of transformers.
"""

from __future__ import annotations

from typing import Any

from megatron.flagscale.convert.families import registry

SMALL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 300,
}
_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "rms_norm_eps": 1e-05,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "transformers_version": "4.31.0",
    "torch_dtype": "float16",
    "use_cache": True,
}
_LLAMA3 = {
    **_LLAMA,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "mlp_bias": False,
    "pretraining_tp": 1,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "torch_dtype": "bfloat16",
}
_MISTRAL = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-05,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.34.0",
    "use_cache": True,
}
_MIXTRAL = {
    **_MISTRAL,
    "architectures": ["MixtralForCausalLM"],
    "model_type": "mixtral",
    "attention_dropout": 0.0,
    "num_experts_per_tok": 2,
    "num_local_experts": 8,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.02,
    "rope_theta": 1000000.0,
    "sliding_window": None,
}
_QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151643,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "max_window_layers": 28,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.1",
    "use_cache": True,
    "use_sliding_window": False,
}
_QWEN3 = {
    **_QWEN2,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 32,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "rope_scaling": None,
    "sliding_window": None,
}
_OLMO2 = {
    "architectures": ["Olmo2ForCausalLM"],
    "model_type": "olmo2",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "eos_token_id": 100257,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 4096,
    "pad_token_id": 100277,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.47.0",
    "use_cache": False,
}
_OF_EXPERTS = {
    "decoder_sparse_step": 1,
    "moe_intermediate_size": 40,
    "output_router_logits": False,
    "router_aux_loss_coef": 0.001,
}
"""The width is small, as in `SMALL`: the published ones are 768 to 2560."""
_QWEN2_MOE = {
    **_QWEN2,
    **_OF_EXPERTS,
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    "norm_topk_prob": False,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "shared_expert_intermediate_size": 160,
}
_QWEN3_MOE = {
    **_QWEN3,
    **_OF_EXPERTS,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "num_experts": 128,
    "num_experts_per_tok": 8,
}
_DEEPSEEK_SIZES = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "moe_intermediate_size": 40,
}
"""Small, as `SMALL`: the published ones are 1536, 512, 128, 64, 128, and 1408 to 2048."""
_YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}
_DEEPSEEK = {
    **_DEEPSEEK_SIZES,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV2Config"},
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 163840,
    "moe_layer_freq": 1,
    "first_k_dense_replace": 1,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000,
    "rope_scaling": _YARN,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
_OF_TRAINING = {"aux_loss_alpha": 0.001, "seq_aux": True, "ep_size": 1, "pretraining_tp": 1}
_GRANITE_CODE = {
    "attention_bias": True,
    "attention_dropout": 0.1,
    "max_position_embeddings": 4096,
    "mlp_bias": True,
    "rope_scaling": None,
    "rope_theta": 10000000,
    "tie_word_embeddings": True,
}
_GPT_OSS = {
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "attention_dropout": 0.0,
    "eos_token_id": 200002,
    "experts_per_token": 4,
    "head_dim": 64,
    "hidden_act": "silu",
    "initial_context_length": 4096,
    "initializer_range": 0.02,
    "layer_types": ["sliding_attention", "full_attention"],
    "max_position_embeddings": 131072,
    "model_type": "gpt_oss",
    "num_experts_per_tok": 4,
    "num_local_experts": 32,
    "output_router_logits": False,
    "pad_token_id": 199999,
    "quantization_config": {
        "modules_to_not_convert": [
            "model.layers.*.self_attn",
            "model.layers.*.mlp.router",
            "model.embed_tokens",
            "lm_head",
        ],
        "quant_method": "mxfp4",
    },
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "router_aux_loss_coef": 0.9,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "tie_word_embeddings": False,
    "transformers_version": "4.55.0.dev0",
    "use_cache": True,
}
_OF_OPENAI = ("experts_per_token", "initial_context_length", "quantization_config")
_DEEPSEEK_V2 = {
    **_DEEPSEEK,
    **_OF_TRAINING,
    "architectures": ["DeepseekV2ForCausalLM"],
    "model_type": "deepseek_v2",
    "bos_token_id": 100000,
    "eos_token_id": 100001,
    "n_group": 8,
    "topk_group": 3,
    "n_routed_experts": 16,  # 160
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "norm_topk_prob": False,
    "rope_scaling": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    "routed_scaling_factor": 16.0,
    "scoring_func": "softmax",
    "topk_method": "group_limited_greedy",
    "transformers_version": "4.39.3",
}
_DEEPSEEK_V3 = {
    **_DEEPSEEK,
    "architectures": ["DeepseekV3ForCausalLM"],
    "model_type": "deepseek_v3",
    "bos_token_id": 0,
    "eos_token_id": 1,
    "n_group": 8,
    "topk_group": 4,
    "n_routed_experts": 32,  # 256
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "num_nextn_predict_layers": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [128, 128],
    },
    "transformers_version": "4.46.3",
}
_MOONLIGHT = {
    **{name: value for name, value in _DEEPSEEK_V3.items() if name != "quantization_config"},
    **_OF_TRAINING,
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "max_position_embeddings": 8192,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": None,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.446,
    "transformers_version": "4.48.3",
}
_KIMI_K2 = {
    **_DEEPSEEK_V3,
    **_OF_TRAINING,
    "max_position_embeddings": 131072,
    "n_group": 1,
    "topk_group": 1,
    "num_nextn_predict_layers": 0,
    "rope_scaling": {**_YARN, "beta_fast": 1.0, "beta_slow": 1.0, "factor": 32.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
}
_GEMMA = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "cache_implementation": "hybrid",
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "initializer_range": 0.02,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "use_cache": True,
}
_GEMMA2 = {
    **_GEMMA,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "torch_dtype": "float32",
    "transformers_version": "4.42.4",
}
_GEMMA3 = {
    **_GEMMA,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "max_position_embeddings": 32768,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.50.0.dev0",
}
_GEMMA3_AS_LIST = {
    **{name: value for name, value in _GEMMA3.items() if name != "sliding_window_pattern"},
    "_sliding_window_pattern": 6,
    "layer_types": ["sliding_attention"] * 2,
    "rope_local_base_freq": 10000.0,
    "rope_theta": 1000000.0,
    "use_bidirectional_attention": False,
}
_SAVED_BY_5 = {"transformers_version": "5.0.0", "dtype": "bfloat16"}


def _by_version_5(config: dict[str, Any], **changes: Any) -> dict[str, Any]:
    gone = ("torch_dtype", "rope_theta", "rope_scaling")
    rope = {**(config.get("rope_scaling") or {})}
    rope.setdefault("rope_type", rope.pop("type", "default"))
    rope["rope_theta"] = config.get("rope_theta", 10000.0)
    kept = {name: value for name, value in config.items() if name not in gone}
    return {**kept, "rope_parameters": rope, **_SAVED_BY_5, **changes}


_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama 1, converted early": ("llama", {**_LLAMA, "max_sequence_length": 2048, "pad_token_id": 0}),
    "Llama 2": (
        "llama",
        {**_LLAMA, "max_position_embeddings": 4096, "pretraining_tp": 1, "rope_scaling": None},
    ),
    "Vicuna 1.5, 16k": (
        "llama",
        {
            **_LLAMA,
            "_name_or_path": "vicuna-7b-v1.5-16k",
            "max_position_embeddings": 4096,
            "max_sequence_length": 16384,
            "rope_scaling": {"factor": 4.0, "type": "linear"},
            "top_p": None,
            "temperature": None,
        },
    ),
    "CodeLlama": ("llama", {**_LLAMA, "max_position_embeddings": 16384, "rope_theta": 1000000}),
    "Llama 3": ("llama", {**_LLAMA3, "rope_scaling": None, "max_position_embeddings": 8192}),
    "Llama 3.1": ("llama", _LLAMA3),
    "Llama 3.2": (
        "llama",
        {
            **_LLAMA3,
            "head_dim": 16,
            "rope_scaling": {**_LLAMA3["rope_scaling"], "factor": 32.0},
            "tie_word_embeddings": True,
        },
    ),
    "Llama 3.1, version 5": ("llama", _by_version_5(_LLAMA3, head_dim=16, pad_token_id=None)),
    "fine-tuned by Unsloth": (
        "llama",
        {**_LLAMA3, "unsloth_version": "2024.9", "unsloth_fixed": True, "pad_token_id": 128004},
    ),
    "SmolLM2": (
        "llama",
        {
            **_LLAMA,
            "is_llama_config": True,
            "rope_interleaved": False,
            "rope_scaling": None,
            "rope_theta": 130000,
            "max_position_embeddings": 8192,
            "attention_bias": False,
            "mlp_bias": False,
            "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}},
            "tie_word_embeddings": True,
        },
    ),
    "with what others leave": (
        "llama",
        {
            **_LLAMA,
            "hidden_dropout": 0.0,
            "logit_scale": 1.0,
            "qk_norm": None,
            "is_decoder": False,
            "layer_types": ["full_attention"] * 2,
            "transformers_weights": "model.safetensors",
        },
    ),
    "trained by DeepSpeed-Chat": ("llama", {**_LLAMA, "dropout": 0.0, "end_token_id": 2, "pad_token_id": 2}),
    "with attention chosen": (
        "llama",
        {**_LLAMA, "_attn_implementation_autoset": True, "_flash_attn_2_enabled": True, "do_sample": True},
    ),
    "Mistral 7B 0.1": ("mistral", {**_MISTRAL, "sliding_window": 4096, "rope_theta": 10000.0}),
    "Mistral 7B 0.3": (
        "mistral",
        {**_MISTRAL, "sliding_window": None, "rope_theta": 1000000.0, "attention_dropout": 0.0},
    ),
    "Mistral Nemo": (
        "mistral",
        {
            **_MISTRAL,
            "head_dim": 24,
            "sliding_window": None,
            "rope_theta": 1000000.0,
            "max_position_embeddings": 131072,
        },
    ),
    "Mistral, version 5": ("mistral", _by_version_5({**_MISTRAL, "sliding_window": None}, head_dim=16)),
    "Zephyr": (
        "mistral",
        {
            **_MISTRAL,
            "_name_or_path": "mistral",
            "pad_token_id": 2,
            "sliding_window": 4096,
            "rope_theta": 10000.0,
        },
    ),
    "Mixtral 8x7B": ("mixtral", _MIXTRAL),
    "Mixtral 8x22B": ("mixtral", {**_MIXTRAL, "router_jitter_noise": 0.0, "router_aux_loss_coef": 0.001}),
    "Mixtral, version 5": ("mixtral", _by_version_5(_MIXTRAL, head_dim=None, router_jitter_noise=0.0)),
    "Qwen1.5": ("qwen2", {**_QWEN2, "max_window_layers": 21}),
    "Qwen2": ("qwen2", {**_QWEN2, "sliding_window": 131072}),
    "Qwen2.5": ("qwen2", {**_QWEN2, "use_mrope": False, "tie_word_embeddings": True}),
    "Qwen2.5, version 5": (
        "qwen2",
        _by_version_5(
            {**_QWEN2, "sliding_window": None}, layer_types=["full_attention"] * 2, pad_token_id=None
        ),
    ),
    "Qwen2.5, up to 128k": (
        "qwen2",
        {
            **_QWEN2,
            "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        },
    ),
    "Qwen3": ("qwen3", _QWEN3),
    "Qwen1.5-MoE": ("qwen2_moe", {**_QWEN2_MOE, "max_window_layers": 21}),
    "Qwen2-57B-A14B": ("qwen2_moe", {**_QWEN2_MOE, "num_experts": 64, "num_experts_per_tok": 8}),
    "Qwen3-MoE": ("qwen3_moe", _QWEN3_MOE),
    "Qwen3-MoE, version 5": (
        "qwen3_moe",
        _by_version_5(
            {name: value for name, value in _QWEN3_MOE.items() if name != "num_experts"},
            num_local_experts=128,
        ),
    ),
    "Gemma-2 2B": ("gemma2", _GEMMA2),
    "Gemma-2 27B": ("gemma2", {**_GEMMA2, "head_dim": 128, "query_pre_attn_scalar": 144}),
    "Gemma-2, version 5": (
        "gemma2",
        _by_version_5(
            {name: value for name, value in _GEMMA2.items() if name != "hidden_act"},
            layer_types=["sliding_attention", "full_attention"],
            tie_word_embeddings=True,
            use_bidirectional_attention=None,
        ),
    ),
    "Gemma-3 1B": ("gemma3", {**_GEMMA3, "eos_token_id": [1, 106]}),
    "Gemma-3 270M": ("gemma3", _GEMMA3_AS_LIST),
    "the text part of Gemma-3 27B": (
        "gemma3",
        {
            **_GEMMA3,
            "head_dim": 128,
            "query_pre_attn_scalar": 168,
            "max_position_embeddings": 131072,
            "sliding_window": 1024,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        },
    ),
    "Gemma-3, version 5": (
        "gemma3",
        {
            **{name: value for name, value in _GEMMA3_AS_LIST.items() if not name.startswith("rope_")},
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
            **_SAVED_BY_5,
        },
    ),
    "OLMo-2 7B": ("olmo2", {**_OLMO2, "num_key_value_heads": 4}),
    "OLMo-2 32B": ("olmo2", _OLMO2),
    "OLMo-2, version 5": ("olmo2", _by_version_5(_OLMO2)),
    "Granite Code": ("llama_biased", {**_LLAMA3, **_GRANITE_CODE}),
    "gpt-oss": ("gpt_oss", _GPT_OSS),
    "gpt-oss, version 5": (
        "gpt_oss",
        _by_version_5(
            {name: one for name, one in _GPT_OSS.items() if name not in _OF_OPENAI},
            swiglu_alpha=1.702,
        ),
    ),
    "DeepSeek-V2": ("deepseek_v2", _DEEPSEEK_V2),
    "DeepSeek-V2-Lite": (
        "deepseek_v2",
        {
            **_DEEPSEEK_V2,
            "n_group": 1,
            "topk_group": 1,
            "q_lora_rank": None,
            "routed_scaling_factor": 1.0,
            "topk_method": "greedy",
        },
    ),
    "DeepSeek-V2-Lite, version 5": (
        "deepseek_v2",
        _by_version_5(
            {**_DEEPSEEK_V2, "n_group": 1, "topk_group": 1, "topk_method": "greedy"},
            head_dim=8,
            qk_head_dim=24,
            mlp_bias=False,
            output_router_logits=False,
        ),
    ),
    "DeepSeek-V3, as first published": ("deepseek_v3", {**_DEEPSEEK_V3, **_OF_TRAINING}),
    "DeepSeek-R1": ("deepseek_v3", _DEEPSEEK_V3),
    "DeepSeek-V3, version 5": (
        "deepseek_v3",
        _by_version_5(_DEEPSEEK_V3, head_dim=8, qk_head_dim=24, rope_interleave=True, pretraining_tp=1),
    ),
    "Moonlight": ("deepseek_v3", _MOONLIGHT),
    "Kimi-K2, as a deepseek_v3": ("deepseek_v3", _KIMI_K2),
    "Qwen3, version 5": ("qwen3", _by_version_5(_QWEN3, layer_types=["full_attention"] * 2)),
}
CONFIGS = {name: (family, {**SMALL, **config}) for name, (family, config) in _CONFIGS.items()}


def small(family: str, **changes: Any) -> dict[str, Any]:
    """Return a file of a family with the sizes alone."""
    found = registry.load(family)
    named = {"architectures": [found.architecture], "model_type": found.model_type}
    return {**SMALL, **named, "max_position_embeddings": 4096, **changes}
