"""Parallel degrees of a homogeneous job, and what must divide what.

Names: tp tensor, pp pipeline, cp context, ep expert, etp expert-tensor, dp data parallel; world size =
tp * cp * pp * dp. The rules are those of Megatron-core (`core/parallel_state.py`, `training/arguments.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Finding = tuple[str, str]
"""(name of the argument to blame, what is wrong)."""


@dataclass(frozen=True)
class Degrees:
    """The degrees of one job; `vpp` is the number of model chunks of a pipeline stage (1: not interleaved)."""

    tp: int = 1
    pp: int = 1
    cp: int = 1
    dp: int = 1
    ep: int = 1
    etp: int = 1
    vpp: int = 1

    @property
    def world_size(self) -> int:
        return self.tp * self.pp * self.cp * self.dp

    def __str__(self) -> str:
        named = {"tp": self.tp, "pp": self.pp, "cp": self.cp, "dp": self.dp, "ep": self.ep, "vpp": self.vpp}
        return " x ".join(f"{name}{size}" for name, size in named.items() if size > 1) or "one rank"


def model_size(values: Mapping[str, Any]) -> int:
    """Return the ranks that hold one copy of the model: tp * cp * pp."""
    return (
        int(values["tensor_model_parallel_size"])
        * int(values["context_parallel_size"])
        * int(values["pipeline_model_parallel_size"])
    )


def degrees(values: Mapping[str, Any], world_size: int) -> Degrees:
    """Return the degrees that the engine derives from its arguments (by dest); call it on checked values."""
    tp = int(values["tensor_model_parallel_size"])
    pp = int(values["pipeline_model_parallel_size"])
    return Degrees(
        tp=tp,
        pp=pp,
        cp=int(values["context_parallel_size"]),
        dp=world_size // model_size(values),
        ep=int(values["expert_model_parallel_size"]),
        etp=int(values["expert_tensor_parallel_size"] or tp),
        vpp=_model_chunks(values, pp),
    )


def findings(values: Mapping[str, Any], world_size: int) -> Iterator[Finding]:
    """Yield every rule that arguments (by dest) break on `world_size` ranks."""
    sizes = {name: values[f"{name}_size"] for name in _DEGREES}
    wrong = [name for name, size in sizes.items() if not isinstance(size, int) or size < 1]
    for name in wrong:
        yield f"{name}_size", f"a degree is a whole number of at least 1, not {sizes[name]!r}"
    if wrong:
        return
    model = model_size(values)
    if world_size % model:
        yield (
            _largest(sizes),
            f"tensor {sizes['tensor_model_parallel']} x pipeline {sizes['pipeline_model_parallel']} x context "
            f"{sizes['context_parallel']} = {model} ranks hold one model, which does not divide the job's "
            f"{world_size} ranks (hosts x nproc_per_node)",
        )
        return
    found = degrees(values, world_size)
    yield from _model_findings(values, found)
    yield from _expert_findings(values, found)
    yield from _pipeline_findings(values, found)
    yield from _batch_findings(values, found)


_DEGREES = ("tensor_model_parallel", "pipeline_model_parallel", "context_parallel", "expert_model_parallel")


def _largest(sizes: Mapping[str, int]) -> str:
    names = [name for name in _DEGREES if name != "expert_model_parallel"]
    return f"{max(names, key=lambda name: sizes[name])}_size"


def _multiple(values: Mapping[str, Any], name: str, of: int, why: str) -> Iterator[Finding]:
    value = values.get(name)
    if isinstance(value, int) and value % of:
        yield name, f"{name} {value} must be a multiple of {of} ({why})"


def _model_findings(values: Mapping[str, Any], found: Degrees) -> Iterator[Finding]:
    heads, groups = values.get("num_attention_heads"), values.get("num_query_groups")
    if values.get("kv_channels") is None and isinstance(heads, int) and heads > 0:
        yield from _multiple(values, "hidden_size", heads, f"{heads} attention heads")
    yield from _multiple(values, "num_attention_heads", found.tp, f"tensor_model_parallel_size {found.tp}")
    yield from _multiple(values, "ffn_hidden_size", found.tp, f"tensor_model_parallel_size {found.tp}")
    if values.get("group_query_attention") and isinstance(groups, int) and isinstance(heads, int) and groups > 0:
        if heads % groups:
            yield "num_query_groups", f"num_query_groups {groups} must divide num_attention_heads {heads}"
        if groups % found.tp and found.tp % groups:
            yield "num_query_groups", f"num_query_groups {groups} and tensor_model_parallel_size {found.tp} do not divide"
    if found.cp > 1:
        yield from _multiple(values, "seq_length", 2 * found.cp, f"2 x context_parallel_size {found.cp}")
    if values.get("sequence_parallel"):
        if found.tp == 1:
            yield "sequence_parallel", "sequence_parallel needs tensor_model_parallel_size > 1"
        yield from _multiple(values, "seq_length", found.tp * found.cp, "sequence parallel: tensor x context ranks")
    length, positions = values.get("seq_length"), values.get("max_position_embeddings")
    if isinstance(length, int) and isinstance(positions, int) and length > positions:
        yield "seq_length", f"seq_length {length} is larger than max_position_embeddings {positions}"


def _expert_findings(values: Mapping[str, Any], found: Degrees) -> Iterator[Finding]:
    experts = values.get("num_experts")
    if found.ep > 1 and not experts:
        yield "expert_model_parallel_size", "expert_model_parallel_size > 1 needs num_experts"
    if not experts:
        return
    yield from _multiple(values, "num_experts", found.ep, f"expert_model_parallel_size {found.ep}")
    expert_ranks = found.etp * found.ep * found.pp
    if found.world_size % expert_ranks:
        yield (
            "expert_model_parallel_size",
            f"expert tensor {found.etp} x expert {found.ep} x pipeline {found.pp} = {expert_ranks} does not "
            f"divide the job's {found.world_size} ranks",
        )
    topk = values.get("moe_router_topk")
    if isinstance(topk, int) and topk > experts:
        yield "moe_router_topk", f"moe_router_topk {topk} is larger than num_experts {experts}"


def _model_chunks(values: Mapping[str, Any], pp: int) -> int:
    per_chunk = values.get("num_layers_per_virtual_pipeline_stage")
    layers = values.get("num_layers")
    if isinstance(per_chunk, int) and isinstance(layers, int) and per_chunk > 0 and pp > 1:
        return max(1, layers // pp // per_chunk)
    return int(values.get("num_virtual_stages_per_pipeline_rank") or 1)


_UNEVEN = (
    "pipeline_model_parallel_layout",
    "decoder_first_pipeline_num_layers",
    "decoder_last_pipeline_num_layers",
    "account_for_embedding_in_pipeline_split",
    "account_for_loss_in_pipeline_split",
)


def _pipeline_findings(values: Mapping[str, Any], found: Degrees) -> Iterator[Finding]:
    per_chunk = values.get("num_layers_per_virtual_pipeline_stage")
    if per_chunk and found.pp == 1:
        yield "num_layers_per_virtual_pipeline_stage", "an interleaved pipeline needs pipeline_model_parallel_size > 1"
    if any(values.get(name) for name in _UNEVEN):
        return
    unit = found.pp * (per_chunk if isinstance(per_chunk, int) and found.pp > 1 else found.vpp)
    yield from _multiple(values, "num_layers", unit, f"pipeline_model_parallel_size {found.pp}")


def _batch_findings(values: Mapping[str, Any], found: Degrees) -> Iterator[Finding]:
    micro, batch = values.get("micro_batch_size"), values.get("global_batch_size")
    if not isinstance(micro, int) or micro < 1:
        yield "micro_batch_size", "micro_batch_size is required: a whole number of at least 1"
        return
    if not isinstance(batch, int):
        return
    step = micro * found.dp
    if batch < 1 or batch % step:
        yield (
            "global_batch_size",
            f"global_batch_size {batch} must be a multiple of {step} (micro_batch_size {micro} x data parallel {found.dp})",
        )
    elif found.vpp > 1 and (batch // step) % found.pp:
        yield (
            "global_batch_size",
            f"an interleaved pipeline needs a multiple of {found.pp} micro-batches a step, not {batch // step}",
        )
