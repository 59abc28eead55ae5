"""The `config.json` that is published for each model in `examples/` with real sizes."""

from __future__ import annotations

from typing import Any

from tests.convert.public_configs import CONFIGS


def _sizes(
    hidden: int, ffn: int, layers: int, heads: int, groups: int, vocab: int, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocab,
        **more,
    }


_LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128}
_SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama/config_llama2_7b": ("Llama 2", _sizes(4096, 11008, 32, 32, 32, 32000)),
    "llama/config_llama2_70b": ("Llama 2", _sizes(8192, 28672, 80, 64, 8, 32000)),
    "llama/config_llama3_8b": ("Llama 3.1", _sizes(4096, 14336, 32, 32, 8, 128256)),
    "llama/config_llama3_70b": ("Llama 3.1", _sizes(8192, 28672, 80, 64, 8, 128256)),
    "mistral/config_7b": ("Mistral 7B 0.3", _sizes(4096, 14336, 32, 32, 8, 32768)),
    "mixtral/config_8x7b": ("Mixtral 8x7B", _sizes(4096, 14336, 32, 32, 8, 32000)),
    "mixtral/config_8x22b": (
        "Mixtral 8x22B",
        _sizes(6144, 16384, 56, 48, 8, 32000, max_position_embeddings=65536),
    ),
    "qwen/config_qwen2.5_7b": (
        "Qwen2.5",
        _sizes(3584, 18944, 28, 28, 4, 152064, max_position_embeddings=131072, tie_word_embeddings=False),
    ),
    "qwen/config_qwen3_8b": ("Qwen3", _sizes(4096, 12288, 36, 32, 8, 151936, head_dim=128)),
    "qwen/config_qwen3_30b_a3b": (
        "Qwen3-MoE",
        _sizes(2048, 6144, 48, 32, 4, 151936, head_dim=128, moe_intermediate_size=768),
    ),
    "deepseek/config_v2_lite": (
        "DeepSeek-V2-Lite",
        _sizes(2048, 10944, 27, 16, 16, 102400, **_LATENT, moe_intermediate_size=1408, n_routed_experts=64),
    ),
    "deepseek/config_v3": (
        "DeepSeek-V3, as first published",
        _sizes(
            7168,
            18432,
            61,
            128,
            128,
            129280,
            **_LATENT,
            q_lora_rank=1536,
            moe_intermediate_size=2048,
            n_routed_experts=256,
            first_k_dense_replace=3,
        ),
    ),
}
"""Example (folder and experiment file) -> (name in `public_configs`, the published sizes)."""
_LONG = {"rope_scaling": CONFIGS["Qwen2.5, up to 128k"][1]["rope_scaling"]}
_SAME = {
    "llama/config_llama3_8b_mixed": "llama/config_llama3_8b",
    "mistral/config_7b_mixed": "mistral/config_7b",
    "qwen/config_qwen3_8b_mixed": "qwen/config_qwen3_8b",
    "qwen/config_qwen3_30b_a3b_cloud": "qwen/config_qwen3_30b_a3b",
}
"""Example -> another example of the same model."""
MODELS = {example: {**CONFIGS[name][1], **sizes} for example, (name, sizes) in _SIZES.items()}
"""Example -> content of `config.json`, once per model."""
PUBLISHED = {
    **MODELS,
    **{example: MODELS[other] for example, other in _SAME.items()},
    "qwen/config_qwen2.5_7b_128k": {**MODELS["qwen/config_qwen2.5_7b"], **_LONG},
}
"""The same for every example with real sizes."""
