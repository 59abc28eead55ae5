"""What can be measured: a layer of a model, by the sizes in the engine's arguments, in a job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Sizes = Mapping[str, int]
"""Arguments of the engine, by dest."""

FULL = ("full",)


@dataclass(frozen=True)
class Case:
    """A layer, the batch, and the job in which it runs."""

    sizes: Sizes
    """Sizes of layer and batch, and parallel degrees (1 if absent)."""
    implementation: str = "torch"
    """The value of `transformer_impl`: torch or local."""
    sequence_parallel: bool = False
    dtype: str = "bfloat16"
    recompute: tuple[str, ...] = ()
    """`recompute_modules` of selective recomputation, or `FULL`."""
    options: tuple[str, ...] = ()
    """What the layer has besides; see `OPTIONS` in layer.py."""
    norms: tuple[tuple[str, Any], ...] = ()
    """Arguments (by dest) of norms that the engine does not have, with their values."""

    def degree(self, name: str) -> int:
        return self.sizes.get(f"{name}_parallel_size", 1)


@dataclass(frozen=True)
class Kept:
    """One tensor that is kept. `nbytes` is the size of its whole storage, which is counted once."""

    module: str
    """The module that keeps the tensor, by its path in the layer. For what the layer itself keeps, the child
    that ran last."""
    operation: str
    """The function that saves it; the operation that created it if nothing was seen to save it."""
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


_DEEPSEEK_V3 = {
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_head_dim": 128,
    "qk_pos_emb_head_dim": 64,
    "v_head_dim": 128,
}

LAYERS: Mapping[str, Sizes] = {
    # Source: the models' config.json on Hugging Face.
    "llama3-8b": {
        "hidden_size": 4096,
        "ffn_hidden_size": 14336,
        "num_attention_heads": 32,
        "num_query_groups": 8,
        "kv_channels": 128,
    },
    "llama3-70b": {
        "hidden_size": 8192,
        "ffn_hidden_size": 28672,
        "num_attention_heads": 64,
        "num_query_groups": 8,
        "kv_channels": 128,
    },
    "deepseek-v3": {**_DEEPSEEK_V3, "ffn_hidden_size": 18432},
    "deepseek-v3-moe": {
        **_DEEPSEEK_V3,
        "num_experts": 256,
        "moe_router_topk": 8,
        "moe_ffn_hidden_size": 2048,
        "moe_shared_expert_intermediate_size": 2048,
        "expert_model_parallel_size": 64,
        "expert_tensor_parallel_size": 1,
    },
    "mixtral-8x7b": {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "num_query_groups": 8,
        "kv_channels": 128,
        "num_experts": 8,
        "moe_router_topk": 2,
        "moe_ffn_hidden_size": 14336,
        "expert_model_parallel_size": 4,
        "expert_tensor_parallel_size": 1,
    },
}
"""One layer of each model; DeepSeek-V3 has two kinds."""


def cases_of(model: str, tp: int, tokens: int) -> list[Case]:
    """Return a model's layer in every implementation, on one of `tp` ranks with one sample of `tokens`.

    `local` is refused with sequence parallelism, and latent attention with `local`.
    """
    sizes = {**LAYERS[model], "seq_length": tokens, "micro_batch_size": 1, "tensor_model_parallel_size": tp}
    is_latent, is_moe = "kv_lora_rank" in sizes, "num_experts" in sizes
    cases = [Case(sizes, "torch", sequence_parallel=True)] if tp > 1 else []
    if tp == 1 or not is_moe:  # the engine wants sequence parallelism for experts on several ranks
        cases += [Case(sizes, name) for name in ("torch", *(() if is_latent else ("local",)))]
    return cases
