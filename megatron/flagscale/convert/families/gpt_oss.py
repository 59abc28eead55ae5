"""gpt-oss: a mixture of experts with biases, sinks of attention, and a window in every other layer.

Checked against transformers 5.19 (`models/gpt_oss`), vLLM 0.32 (`models/gpt_oss.py`) and Megatron-core 0.19.2
(`transformer/mlp.py`, `fusions/fused_softmax.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron.flagscale.convert.families.base import POSITIVE, Setting
from megatron.flagscale.convert.families.decoder import ATTENTION, FIRST, KEYS, LAST, layer, llama_like
from megatron.flagscale.convert.families.joins import Shape
from megatron.flagscale.convert.families.llama_biased import OUTPUT_BIAS
from megatron.flagscale.convert.families.mixtral import BALANCING
from megatron.flagscale.convert.families.qwen2 import BIASES
from megatron.flagscale.convert.json_values import same
from megatron.flagscale.convert.model import Model

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Transposed:
    """A matrix, or a vector, which does not change; if `gated`, its columns are gate and up in turns."""

    gated: bool = False

    def shapes(self, shape: Shape) -> tuple[Shape, ...]:
        return (shape[::-1],)

    def join(self, parts: Sequence[torch.Tensor], model: Model) -> torch.Tensor:
        rows = parts[0].t()
        return rows.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1) if self.gated else rows

    def split(self, tensor: torch.Tensor, model: Model) -> Sequence[torch.Tensor]:
        return ((tensor.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1) if self.gated else tensor).t(),)


_LIMIT = "activation_func_clamp_value"
_PLAIN, _GATED = _Transposed(), _Transposed(gated=True)
_EXPERT = "mlp.experts.experts."
_EXPERTS = (
    layer(
        "mlp.linear_fc1.layer_norm_weight",
        "post_attention_layernorm.weight",
        "hidden",
        also="pre_mlp_layernorm.weight",
    ),
    layer("mlp.router.weight", "mlp.router.weight", "experts hidden"),
    layer("mlp.router.bias", "mlp.router.bias", "experts"),
    layer(f"{_EXPERT}linear_fc1.weight", "mlp.experts.gate_up_proj", "gate+up hidden", _GATED, stacked=True),
    layer(f"{_EXPERT}linear_fc1.bias", "mlp.experts.gate_up_proj_bias", "gate+up", _GATED, stacked=True),
    layer(f"{_EXPERT}linear_fc2.weight", "mlp.experts.down_proj", "hidden ffn", _PLAIN, stacked=True),
    layer(f"{_EXPERT}linear_fc2.bias", "mlp.experts.down_proj_bias", "hidden", _PLAIN, stacked=True),
)


def _in_turns(model: Model) -> list[str]:
    """Return the kind of attention of each layer of a model with a window."""
    return [("sliding_attention", "full_attention")[number % 2] for number in range(model.layers)]


def _kinds(model: Model) -> list[str]:
    return _in_turns(model) if model.window else ["full_attention"] * model.layers


def _known_kinds(value: Any, model: Model) -> str:
    # A window that is not shorter than the longest sequence changes nothing.
    if value in (None, _in_turns(model), _kinds(model)):
        return ""
    return "only 'sliding_attention', 'full_attention' in turns, for all layers, or null is supported"


def _stretched(value: Any, model: Model) -> str:
    stretched = model.rope is not None and model.rope.yarn is not None
    return "" if stretched else "vLLM computes only rotary positions of the kind 'yarn' in this family"


def _several(value: Any, model: Model) -> str:
    return (
        "" if model.topk > 1 else "Megatron does not normalize the weight of a single expert: use 2 or more"
    )


def _no_dropout(value: Any, model: Model) -> str:
    return "only 0 is supported, with which the model was trained" if model.attention_dropout else ""


def _original(value: Any, model: Model) -> str:
    """Return "" if the key, which only OpenAI's own code reads, agrees with the rotary positions."""
    known = model.rope.yarn.original if model.rope and model.rope.yarn else None
    return "" if value in (None, known) else f"it must be `original_max_position_embeddings`, {known}"


def _chosen(value: Any, model: Model) -> str:
    """Return "" if the key, which only OpenAI's own code reads, agrees with the one of transformers."""
    if value is None or same(value, model.topk):
        return ""
    return f"`num_experts_per_tok` is {model.topk}, and the two must be equal"


def _caveat(model: Model) -> str:
    """Return a note if a value differs from that of gpt-oss, which vLLM 0.32 has in its code."""
    differs = {
        "rms_norm_eps": model.norm_eps != 1e-5,
        "swiglu_limit": model.settings[_LIMIT] != 7,
        "tie_word_embeddings": model.tied,
    }
    keys = [key for key, is_other in differs.items() if is_other]
    if not keys:
        return ""
    what = f"vLLM does not read {', '.join(keys)}, and computes this model with the values of gpt-oss"
    return f"{what} (1e-05, 7 and false): open it with transformers"


GPT_OSS = llama_like(
    name="gpt_oss",
    architecture="GptOssForCausalLM",
    model_type="gpt_oss",
    rows=(
        *FIRST,
        *ATTENTION,
        BIASES,
        OUTPUT_BIAS,
        layer("self_attention.core_attention.softmax_offset", "self_attn.sinks", "heads"),
        *_EXPERTS,
        *LAST,
    ),
    keys={
        **KEYS,
        "experts": "num_local_experts",
        "topk": "num_experts_per_tok",
        "window": "sliding_window",
    },
    arguments={
        "position_embedding_type": "rope",
        "normalization": "RMSNorm",
        "add_bias_linear": True,
        "add_qkv_bias": True,
        "softmax_type": "learnable",
        "quick_geglu": True,
        "glu_linear_offset": 1.0,
        "window_attn_skip_freq": 2,
    },
    task={"transformer_impl": "torch", "bias_gelu_fusion": False},
    scalings=("yarn",),
    config={"hidden_act": "silu", "attention_bias": True, "swiglu_alpha": 1.702},
    written={"layer_types": _kinds, "output_router_logits": False},
    checks={
        "layer_types": _known_kinds,
        "rope_scaling": _stretched,
        "num_experts_per_tok": _several,
        "initial_context_length": _original,
        "experts_per_token": _chosen,
        "attention_dropout": _no_dropout,
    },
    settings=(BALANCING, Setting("swiglu_limit", _LIMIT, kind=POSITIVE)),
    extents={"heads": lambda model: model.heads},
    other_keys={"num_experts": "num_local_experts"},
    harmless=("output_router_logits",),
    caveat=_caveat,
)
