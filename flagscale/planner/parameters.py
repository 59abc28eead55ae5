"""The weights that one rank holds, exactly as the engine creates them: shapes, elements, and who shares them.

Rules: Megatron-core 0.19.2 (`gpt_model.py`, `attention.py`, `multi_latent_attention.py`, `mlp.py`,
`router.py`, `multi_token_prediction.py`), and our `drop_unused_outputs`. Implementations of layers differ in
one thing: with tensor parallelism, every rank of TransformerEngine holds the whole down-projections of latent
attention, which `torch` and `local` split.

A size that a degree does not divide is rounded up; the checks of a job refuse it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Iterator, Mapping

from flagscale.checks.hetero.layout import Stage
from flagscale.checks.norms import POST, PRE
from flagscale.frozen import dataclass, replace
from flagscale.planner.model_shape import ModelShape
from flagscale.planner.training import Training


@dataclass(frozen=True)
class Weight:
    """`count` weights of one shape on one rank."""

    part: str
    """The part of the model: embedding, dense layers, expert layers, final norm, output, prediction heads."""
    module: str
    """The module in its part, by the engine's name: `self_attention.linear_qkv`."""
    shape: tuple[int, ...]
    count: int = 1
    is_expert: bool = False
    """Whether gradients are reduced over the copies of the expert instead of those of the model."""

    @property
    def elements(self) -> int:
        return self.count * math.prod(self.shape)


@dataclass(frozen=True)
class Parameters:
    """The weights of one rank. Figures are numbers of elements."""

    weights: tuple[Weight, ...]

    @property
    def dense(self) -> int:
        """Of weights whose gradients are reduced over the copies of the model, dp x cp."""
        return sum(weight.elements for weight in self.weights if not weight.is_expert)

    @property
    def expert(self) -> int:
        """Of weights whose gradients are reduced over the copies of the experts."""
        return sum(weight.elements for weight in self.weights if weight.is_expert)

    @property
    def total(self) -> int:
        return sum(weight.elements for weight in self.weights)

    @property
    def parts(self) -> Mapping[str, int]:
        """Of each part of the model."""
        found: dict[str, int] = {}
        for weight in self.weights:
            found[weight.part] = found.get(weight.part, 0) + weight.elements
        return found


def stage_parameters(training: Training, stage: Stage) -> Parameters:
    """Return the weights of each rank of a stage, of all its model chunks."""
    model, last = training.model, training.last_position
    found: list[Weight] = []
    for chunk in range(len(stage.chunks)):
        number = training.position(stage, chunk)
        layers = training.chunk_layers(stage, chunk)
        for is_moe in (False, True):
            if count := sum(model.experts_in[layer] is is_moe for layer in layers):
                found += _layers(training, stage, is_moe, count)
        has_heads = bool(model.prediction_heads) and number == training.heads_position
        # Beside heads, the last norm is behind the last layer, wherever the loss is.
        has_norm = model.layers - 1 in layers if model.prediction_heads else number == last
        if number == 0 or has_heads:
            found += _embedding(training, stage)
        if has_norm:
            found += _norm(model, "final norm", "final_layernorm", model.hidden)
        if has_heads:
            found += _heads(training, stage, has_layers=bool(layers))
        # A tied output shares the weights of an embedding on the same rank and chunk.
        if number == last and not (model.tied and (number == 0 or has_heads)):
            found.append(Weight("output", "output_layer", _vocabulary(training, stage)))
    return Parameters(_joined(found))


def layer_parameters(
    model: ModelShape,
    tp: int,
    ep: int,
    etp: int,
    is_moe: bool,
    implementation: str = "transformer_engine",
) -> Parameters:
    """Return the weights of one layer on one rank."""
    return Parameters(_layer(model, tp, ep, etp, is_moe, implementation))


def _layers(training: Training, stage: Stage, is_moe: bool, count: int) -> Iterator[Weight]:
    mesh, block = training.layout.meshes[stage.mesh], training.blocks[stage.mesh]
    one = _layer(training.model, stage.tp, mesh.ep, block.expert_tp, is_moe, training.implementation)
    return (replace(weight, count=count * weight.count) for weight in one)


def _embedding(training: Training, stage: Stage) -> Iterator[Weight]:
    model = training.model
    yield Weight("embedding", "word_embeddings", _vocabulary(training, stage))
    if model.learned_positions:
        yield Weight("embedding", "position_embeddings", (model.learned_positions, model.hidden))


def _vocabulary(training: Training, stage: Stage) -> tuple[int, int]:
    return _share(training.padded_vocabulary, stage.tp), training.model.hidden


def _heads(training: Training, stage: Stage, has_layers: bool) -> Iterator[Weight]:
    """Yield the weights of all prediction heads of a chunk, each with a layer of the kind of the last one.

    In a chunk without layers, the engine gives its own layers experts if any layer of the model has them.
    """
    model, part = training.model, "prediction heads"
    count = 1 if model.repeated_head else model.prediction_heads
    is_engines = training.implementation != "torch"
    is_moe = bool(model.experts) if is_engines and not has_layers else model.experts_in[-1]
    for name in ("enorm", "hnorm", "final_layernorm"):
        yield from _norm(model, part, name, model.hidden, count)
    yield Weight(part, "eh_proj", (_share(model.hidden, stage.tp), 2 * model.hidden), count)
    for weight in _layers(training, stage, is_moe, count):
        yield replace(weight, part=part)


@functools.lru_cache
def _layer(
    model: ModelShape, tp: int, ep: int, etp: int, is_moe: bool, implementation: str
) -> tuple[Weight, ...]:
    part = "expert layers" if is_moe else "dense layers"
    splits_down = 1 if implementation == "transformer_engine" else tp
    before = () if model.norm_position == POST else ("input_layernorm", "pre_mlp_layernorm")
    after = () if model.norm_position == PRE else ("post_attention_norm", "post_mlp_norm")
    return _joined(
        [
            *(weight for name in (*before, *after) for weight in _norm(model, part, name, model.hidden)),
            *(_latent(model, part, tp, splits_down) if model.attention == "mla" else _plain(model, part, tp)),
            *(_experts(model, tp, ep, etp) if is_moe else _mlp(model, part, "mlp", model.ffn, tp)),
        ]
    )


def _plain(model: ModelShape, part: str, tp: int) -> Iterator[Weight]:
    """Yield the weights of attention with a key for each head or for groups of heads.

    If there are fewer groups than ranks, the ranks divide the columns of all groups nevertheless.
    """
    queries, keys = model.heads * model.head_dim, model.groups * model.head_dim
    has_bias, gate = model.linear_bias or model.qkv_bias, queries if model.output_gate else 0
    width = queries + 2 * keys + gate
    yield from _column(part, "self_attention.linear_qkv", width, model.hidden, tp, has_bias)
    if model.qk_norm:
        for name in ("q_layernorm", "k_layernorm"):
            yield from _norm(model, part, f"self_attention.{name}", model.head_dim)
    if model.qk_norm_across_heads:
        for name, size in (("query_norm", queries), ("key_norm", keys)):
            yield Weight(part, f"self_attention.{name}", (_share(size, tp),))
    yield from _row(part, "self_attention.linear_proj", model.hidden, queries, tp, model.linear_bias)


def _latent(model: ModelShape, part: str, tp: int, splits_down: int) -> Iterator[Weight]:
    query, hidden = model.heads * (model.qk_nope_dim + model.rope_dim), model.hidden
    if model.q_lora:
        yield from _column(part, "self_attention.linear_q_down_proj", model.q_lora, hidden, splits_down)
        yield from _column(part, "self_attention.linear_q_up_proj", query, model.q_lora, tp)
    else:
        yield from _column(part, "self_attention.linear_q_proj", query, hidden, tp)
    down, up = model.kv_lora + model.rope_dim, model.heads * (model.qk_nope_dim + model.v_dim)
    yield from _column(part, "self_attention.linear_kv_down_proj", down, hidden, splits_down)
    yield from _column(part, "self_attention.linear_kv_up_proj", up, model.kv_lora, tp)
    if model.qk_norm:
        for name, width in (("q_layernorm", model.q_lora), ("kv_layernorm", model.kv_lora)):
            if width:
                yield from _norm(model, part, f"self_attention.{name}", width)
    yield from _row(
        part, "self_attention.linear_proj", hidden, model.heads * model.v_dim, tp, model.linear_bias
    )


def _mlp(model: ModelShape, part: str, module: str, width: int, tp: int) -> Iterator[Weight]:
    up = (2 if model.gated else 1) * width
    yield from _column(part, f"{module}.linear_fc1", up, model.hidden, tp, model.linear_bias)
    yield from _row(part, f"{module}.linear_fc2", model.hidden, width, tp, model.linear_bias)


def _experts(model: ModelShape, tp: int, ep: int, etp: int) -> Iterator[Weight]:
    part, count = "expert layers", _share(model.experts, ep)
    yield Weight(part, "mlp.router", (model.experts, model.hidden))
    if model.linear_bias:
        yield Weight(part, "mlp.router.bias", (model.experts,))
    # Otherwise, the copies of the experts are those of the model.
    is_expert = ep > 1 or etp != tp
    for weight in _mlp(model, part, "mlp.experts", model.expert_ffn, etp):
        yield replace(weight, count=count, is_expert=is_expert)
    if model.shared_ffn:
        yield from _mlp(model, part, "mlp.shared_experts", model.shared_ffn, tp)
        if model.shared_gate:
            yield Weight(part, "mlp.shared_experts.gate_weight", (1, model.hidden))


def _norm(model: ModelShape, part: str, module: str, width: int, count: int = 1) -> Iterator[Weight]:
    yield Weight(part, module, (width,), count)
    if model.norm_bias:
        yield Weight(part, f"{module}.bias", (width,), count)


def _column(part: str, module: str, out: int, into: int, tp: int, has_bias: bool = False) -> Iterator[Weight]:
    """Yield a linear layer that is split by its outputs."""
    yield Weight(part, module, (_share(out, tp), into))
    if has_bias:
        yield Weight(part, f"{module}.bias", (_share(out, tp),))


def _row(part: str, module: str, out: int, into: int, tp: int, has_bias: bool) -> Iterator[Weight]:
    """Yield a linear layer that is split by its inputs; every rank holds the whole bias."""
    yield Weight(part, module, (out, _share(into, tp)))
    if has_bias:
        yield Weight(part, f"{module}.bias", (out,))


def _share(size: int, degree: int) -> int:
    return -(-size // degree)


def _joined(weights: Iterable[Weight]) -> tuple[Weight, ...]:
    """Return the weights with those of all chunks that are the same joined into one entry."""
    found: dict[Weight, int] = {}
    for weight in weights:
        key = replace(weight, count=1)
        found[key] = found.get(key, 0) + weight.count
    return tuple(replace(weight, count=count) for weight, count in found.items())
