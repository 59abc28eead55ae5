"""GPT-2 for FlagScale's converter.

Unlike a Llama it has LayerNorm, biases, learned positions and an MLP without a gate. Hugging Face stores its
matrices transposed, with the queries of all heads first, then all keys, then all values.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from megatron.flagscale.convert.families.base import Family, Row, Setting
from megatron.flagscale.convert.families.joins import COPY, Join, Shape
from megatron.flagscale.convert.model import Model

if TYPE_CHECKING:
    import torch


class Transposed:
    """Transposes: matrices of Hugging Face's `Conv1D` are `[in, out]`, those of Megatron `[out, in]`."""

    def shapes(self, shape: Shape) -> tuple[Shape, ...]:
        return (shape[::-1],)

    def join(self, parts: Sequence[torch.Tensor], model: Model) -> torch.Tensor:
        return parts[0].t()

    def split(self, tensor: torch.Tensor, model: Model) -> Sequence[torch.Tensor]:
        return (tensor.t(),)


class ByHead(Transposed):
    """Reorders: Megatron stores query, key and value by head; Hugging Face all queries, keys, values."""

    def join(self, parts: Sequence[torch.Tensor], model: Model) -> torch.Tensor:
        return parts[0].t().unflatten(0, (3, model.heads, -1)).transpose(0, 1).flatten(0, 2)

    def split(self, tensor: torch.Tensor, model: Model) -> Sequence[torch.Tensor]:
        return (tensor.unflatten(0, (model.heads, 3, -1)).transpose(0, 1).flatten(0, 2).t(),)


TRANSPOSED, BY_HEAD = Transposed(), ByHead()


def layer(megatron: str, huggingface: str, shape: str, join: Join = COPY) -> Row:
    """Return the row of a tensor in a layer; the extents are separated by spaces."""
    names = (f"transformer.h.{{layer}}.{huggingface}",)
    return Row(f"decoder.layers.{{layer}}.{megatron}", names, tuple(shape.split()), join)


def like_hidden(dropout: Any, model: Model) -> str:
    """Return what is wrong with the dropout of embeddings: Megatron has one for them and the layers."""
    return (
        ""
        if dropout == model.hidden_dropout
        else f"only {model.hidden_dropout}, as `resid_pdrop`, is supported"
    )


GPT2 = Family(
    name="gpt2",
    architecture="GPT2LMHeadModel",
    model_type="gpt2",
    rows=(
        Row("embedding.word_embeddings.weight", ("transformer.wte.weight",), ("vocab", "hidden")),
        Row("embedding.position_embeddings.weight", ("transformer.wpe.weight",), ("positions", "hidden")),
        layer("self_attention.linear_qkv.layer_norm_weight", "ln_1.weight", "hidden"),
        layer("self_attention.linear_qkv.layer_norm_bias", "ln_1.bias", "hidden"),
        layer("self_attention.linear_qkv.weight", "attn.c_attn.weight", "qkv hidden", BY_HEAD),
        layer("self_attention.linear_qkv.bias", "attn.c_attn.bias", "qkv", BY_HEAD),
        layer("self_attention.linear_proj.weight", "attn.c_proj.weight", "hidden query", TRANSPOSED),
        layer("self_attention.linear_proj.bias", "attn.c_proj.bias", "hidden"),
        layer("mlp.linear_fc1.layer_norm_weight", "ln_2.weight", "hidden"),
        layer("mlp.linear_fc1.layer_norm_bias", "ln_2.bias", "hidden"),
        layer("mlp.linear_fc1.weight", "mlp.c_fc.weight", "ffn hidden", TRANSPOSED),
        layer("mlp.linear_fc1.bias", "mlp.c_fc.bias", "ffn"),
        layer("mlp.linear_fc2.weight", "mlp.c_proj.weight", "hidden ffn", TRANSPOSED),
        layer("mlp.linear_fc2.bias", "mlp.c_proj.bias", "hidden"),
        Row("decoder.final_layernorm.weight", ("transformer.ln_f.weight",), ("hidden",)),
        Row("decoder.final_layernorm.bias", ("transformer.ln_f.bias",), ("hidden",)),
        Row("output_layer.weight", ("lm_head.weight",), ("vocab", "hidden")),
    ),
    keys={
        "layers": "n_layer",
        "hidden": "n_embd",
        "heads": "n_head",
        "ffn": "n_inner",
        "vocab": "vocab_size",
        "positions": "n_positions",
        "norm_eps": "layer_norm_epsilon",
        "attention_dropout": "attn_pdrop",
        "hidden_dropout": "resid_pdrop",
    },
    derived={"ffn": lambda known: 4 * known["hidden"]},  # in the class of the model, not of its configuration
    # The engine's defaults are those of GPT-2; it also sets this bias of query, key and value automatically.
    arguments={"add_qkv_bias": True},
    # The engine computes GELU by tanh if it fuses bias and GELU, and otherwise (as on a CPU) by erf.
    settings=(Setting("activation_function", "bias_gelu_fusion", {"gelu_new": True, "gelu": False}),),
    checks={"embd_pdrop": like_hidden},
    written={"embd_pdrop": lambda model: model.hidden_dropout},
    # A head that classifies, and the precision of a product while training.
    harmless=(
        *("summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels"),
        *("summary_first_dropout", "reorder_and_upcast_attn", "n_ctx"),
    ),
    buffers=(".attn.bias", ".attn.masked_bias"),  # causal masks, in older checkpoints
)
