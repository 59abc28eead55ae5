"""Parallel degrees of a homogeneous job, and what must divide what.

Names: tp tensor, pp pipeline, cp context, ep expert, etp expert-tensor, dp data parallel; world size =
tp * cp * pp * dp. The rules are those of Megatron-core (`core/parallel_state.py`, `training/arguments.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flagscale.parallel.finding import Finding, multiple
from flagscale.parallel.pipeline import model_chunks, pipeline_findings, schedule_finding
from flagscale.parallel.recompute import recompute_findings


@dataclass(frozen=True)
class Degrees:
    """The degrees of one job; `vpp` is the number of model chunks of a stage (1: not interleaved)."""

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
        vpp=model_chunks(values, pp),
    )


def findings(values: Mapping[str, Any], world_size: int) -> Iterator[Finding]:
    """Yield every rule that arguments (by dest) break on `world_size` ranks."""
    sizes = {name: values[f"{name}_size"] for name in _DEGREES if values[f"{name}_size"] is not None}
    wrong = [name for name, size in sizes.items() if not isinstance(size, int) or size < 1]
    for name in wrong:
        yield f"{name}_size", f"a degree is a whole number of at least 1, not {sizes[name]!r}"
    if wrong:
        return
    model = model_size(values)
    if world_size % model:
        yield (
            _largest(sizes),
            f"tensor {sizes['tensor_model_parallel']} x pipeline {sizes['pipeline_model_parallel']} x "
            f"context {sizes['context_parallel']} = {model} ranks hold one model, which does not divide "
            f"the job's {world_size} ranks (hosts x nproc_per_node)",
        )
        return
    found = degrees(values, world_size)
    yield from _model_findings(values, found)
    yield from _expert_findings(values, found)
    yield from pipeline_findings(values, found.pp, found.vpp)
    yield from _batch_findings(values, found)


_DEGREES = (
    "tensor_model_parallel",
    "pipeline_model_parallel",
    "context_parallel",
    "expert_model_parallel",
    "expert_tensor_parallel",
)


def _largest(sizes: Mapping[str, int]) -> str:
    return f"{max(_DEGREES[:3], key=lambda name: sizes[name])}_size"


def _model_findings(values: Mapping[str, Any], found: Degrees) -> Iterator[Finding]:
    heads, groups = values.get("num_attention_heads"), values.get("num_query_groups")
    split = f"tensor_model_parallel_size {found.tp}"
    if values.get("kv_channels") is None and isinstance(heads, int) and heads > 0:
        yield from multiple(values, "hidden_size", heads, f"{heads} attention heads")
    yield from multiple(values, "num_attention_heads", found.tp, split)
    yield from multiple(values, "ffn_hidden_size", found.tp, split)
    is_grouped = values.get("group_query_attention")
    if is_grouped and isinstance(groups, int) and isinstance(heads, int) and groups > 0:
        if heads % groups:
            yield "num_query_groups", f"num_query_groups {groups} must divide num_attention_heads {heads}"
        if groups % found.tp and found.tp % groups:
            yield "num_query_groups", f"num_query_groups {groups} and {split} do not divide each other"
    if found.cp > 1:
        yield from multiple(values, "seq_length", 2 * found.cp, f"2 x context_parallel_size {found.cp}")
    if values.get("sequence_parallel") and found.tp > 1:
        why = f"sequence parallel: tensor {found.tp} x context {found.cp}"
        yield from multiple(values, "seq_length", found.tp * found.cp, why)


def _expert_findings(values: Mapping[str, Any], found: Degrees) -> Iterator[Finding]:
    experts = values.get("num_experts")
    if found.ep > 1 and not experts:
        yield "expert_model_parallel_size", "expert_model_parallel_size > 1 needs num_experts"
    if not experts:
        return
    yield from multiple(values, "num_experts", found.ep, f"expert_model_parallel_size {found.ep}")
    yield from multiple(values, "moe_ffn_hidden_size", found.etp, f"expert_tensor_parallel_size {found.etp}")
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


def _recompute_findings(values: Mapping[str, Any], found: Degrees, micro_batches: int) -> Iterator[Finding]:
    chunks = None if values.get("pipeline_model_parallel_layout") else found.vpp
    yield from recompute_findings(values, found.pp, chunks, micro_batches)


def _batch_findings(values: Mapping[str, Any], found: Degrees) -> Iterator[Finding]:
    micro, batch = values.get("micro_batch_size"), values.get("global_batch_size")
    if not isinstance(micro, int) or micro < 1:
        yield "micro_batch_size", "micro_batch_size is required: a whole number of at least 1"
        return
    if values.get("step_batch_size_schedule"):
        if batch is not None:
            yield "global_batch_size", "give global_batch_size or step_batch_size_schedule, not both"
        yield from _recompute_findings(values, found, 1)
        return
    step = micro * found.dp
    batch = step if batch is None else batch
    if batch < 1 or (batch % step and not values.get("decrease_batch_size_if_needed")):
        why = f"micro_batch_size {micro} x data parallel {found.dp}"
        yield "global_batch_size", f"global_batch_size {batch} must be a multiple of {step} ({why})"
        return
    if wrong := schedule_finding(values, found.pp, found.vpp, batch // step):
        yield "global_batch_size", wrong
    yield from _recompute_findings(values, found, batch // step)
    evaluated = values.get("eval_global_batch_size")
    step = (values.get("eval_micro_batch_size") or micro) * found.dp
    if (evaluated or batch) % step:
        is_micro = evaluated is None and values.get("eval_micro_batch_size")
        name = "eval_micro_batch_size" if is_micro else "eval_global_batch_size"
        why = f"eval_micro_batch_size {step // found.dp} x data parallel {found.dp}"
        yield name, f"an evaluation step of {evaluated or batch} samples must be a multiple of {step} ({why})"
