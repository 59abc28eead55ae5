"""The families: for each tensor of a model its name in Megatron and its names in Hugging Face.

A family is a table. What a tensor is called, which tensors are joined in it and its shape stand here once,
for both directions. Standard library only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from megatron.flagscale.convert.model import Model

COPY, QKV, GATED = "copy", "query, key, value", "gate, up"
"""How a tensor of Megatron is made of Hugging Face's, along its first dimension.

COPY: it is that tensor. GATED: one after the other. QKV: by group of query heads: its queries, key, value.
"""


@dataclass(frozen=True)
class Row:
    """A line of a table; `{layer}` and `{expert}` stand for numbers, shapes are named as in `Model.sizes`.

    `also` is a second name of the same tensor in Megatron: layers of TransformerEngine use another one.
    """

    megatron: str
    huggingface: tuple[str, ...]
    shape: tuple[str, ...]
    join: str = COPY
    also: str = ""


@dataclass(frozen=True)
class Family:
    """An architecture of Hugging Face's, and its tensors."""

    name: str
    architecture: str
    model_type: str
    rows: tuple[Row, ...]
    qkv_bias: bool = False
    qk_norm: bool = False
    moe: bool = False


def _layer(megatron: str, huggingface: str, shape: str, join: str = COPY, also: str = "") -> Row:
    return Row(
        f"decoder.layers.{{layer}}.{megatron}",
        tuple(f"model.layers.{{layer}}.{name}" for name in huggingface.split()),
        tuple(shape.split()),
        join,
        f"decoder.layers.{{layer}}.{also}" if also else "",
    )


_FIRST = (Row("embedding.word_embeddings.weight", ("model.embed_tokens.weight",), ("vocab", "hidden")),)
_LAST = (
    Row("decoder.final_layernorm.weight", ("model.norm.weight",), ("hidden",)),
    Row("output_layer.weight", ("lm_head.weight",), ("vocab", "hidden")),
)
_QKV = "self_attn.q_proj.{} self_attn.k_proj.{} self_attn.v_proj.{}"
_ATTENTION = (
    _layer("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight", "hidden"),
    _layer("self_attention.linear_qkv.weight", _QKV.replace("{}", "weight"), "qkv hidden", QKV),
    _layer("self_attention.linear_proj.weight", "self_attn.o_proj.weight", "hidden query"),
)
_QKV_BIAS = (_layer("self_attention.linear_qkv.bias", _QKV.replace("{}", "bias"), "qkv", QKV),)
_QK_NORM = (
    _layer("self_attention.q_layernorm.weight", "self_attn.q_norm.weight", "head"),
    _layer("self_attention.k_layernorm.weight", "self_attn.k_norm.weight", "head"),
)
_MLP_NORM = ("mlp.linear_fc1.layer_norm_weight", "post_attention_layernorm.weight", "hidden")
_MLP = (
    _layer(*_MLP_NORM),
    _layer("mlp.linear_fc1.weight", "mlp.gate_proj.weight mlp.up_proj.weight", "gate+up hidden", GATED),
    _layer("mlp.linear_fc2.weight", "mlp.down_proj.weight", "hidden ffn"),
)
_EXPERT = "block_sparse_moe.experts.{expert}."
_MOE = (
    _layer(*_MLP_NORM, also="pre_mlp_layernorm.weight"),
    _layer("mlp.router.weight", "block_sparse_moe.gate.weight", "experts hidden"),
    _layer(
        "mlp.experts.experts.linear_fc1.weight",
        f"{_EXPERT}w1.weight {_EXPERT}w3.weight",
        "gate+up hidden",
        GATED,
    ),
    _layer("mlp.experts.experts.linear_fc2.weight", f"{_EXPERT}w2.weight", "hidden ffn"),
)

_LLAMA = (*_FIRST, *_ATTENTION, *_MLP, *_LAST)
FAMILIES = {
    family.name: family
    for family in (
        Family("llama", "LlamaForCausalLM", "llama", _LLAMA),
        # Aquila is a Llama with another vocabulary: everything opens it as one.
        Family("aquila", "LlamaForCausalLM", "llama", _LLAMA),
        Family(
            "mixtral",
            "MixtralForCausalLM",
            "mixtral",
            (*_FIRST, *_ATTENTION, *_MOE, *_LAST),
            moe=True,
        ),
        Family(
            "qwen2",
            "Qwen2ForCausalLM",
            "qwen2",
            (*_FIRST, *_ATTENTION, *_QKV_BIAS, *_MLP, *_LAST),
            qkv_bias=True,
        ),
        Family(
            "qwen3",
            "Qwen3ForCausalLM",
            "qwen3",
            (*_FIRST, *_ATTENTION, *_QK_NORM, *_MLP, *_LAST),
            qk_norm=True,
        ),
    )
}


@dataclass(frozen=True)
class Entry:
    """One tensor on its way: of Megatron's tensor `megatron` the whole, or the part of one expert.

    `huggingface` are the tensors it is joined from, `parts` their shapes.
    """

    megatron: str
    also: str
    expert: int | None
    shape: tuple[int, ...]
    huggingface: tuple[str, ...]
    parts: tuple[tuple[int, ...], ...]
    join: str

    @property
    def has_vocabulary(self) -> bool:
        """Whether its rows are tokens, which Megatron pads."""
        return self.megatron in ("embedding.word_embeddings.weight", "output_layer.weight")

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def entries(model: Model) -> Iterator[Entry]:
    """Yield every tensor of a model, from the embedding to the output; what a folder must hold, no more."""
    rows = FAMILIES[model.family].rows
    in_layers = [row for row in rows if "{layer}" in row.megatron]
    yield from (_entry(model, row) for row in _FIRST)
    for layer in range(model.layers):
        for row in in_layers:
            several = any("{expert}" in name for name in row.huggingface)
            for expert in range(model.experts) if several else (None,):
                yield _entry(model, row, layer, expert)
    yield from (_entry(model, row) for row in _LAST if not (model.tied and row.megatron.startswith("output")))


def _entry(model: Model, row: Row, layer: int | None = None, expert: int | None = None) -> Entry:
    sizes = model.sizes()
    rest = tuple(sizes[name] for name in row.shape[1:])
    firsts = {
        COPY: (row.shape[0],),
        GATED: ("ffn", "ffn"),
        QKV: ("query", "key", "key"),
    }[row.join]
    return Entry(
        row.megatron.format(layer=layer),
        row.also.format(layer=layer),
        expert,
        (sizes[row.shape[0]], *rest),
        tuple(name.format(layer=layer, expert=expert) for name in row.huggingface),
        tuple((sizes[first], *rest) for first in firsts),
        row.join,
    )
