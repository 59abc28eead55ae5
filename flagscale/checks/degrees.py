"""Parallel degrees of a homogeneous job, and the divisibility rules between them and the model.

Names: tp tensor, pp pipeline, cp context, ep expert, etp expert-tensor, dp data parallel; world size =
tp * cp * pp * dp. The rules are those of Megatron-core (`core/parallel_state.py`, `training/arguments.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import isqrt
from typing import Any

from flagscale.checks.pipeline import interleaving_violation, model_chunks, pipeline_violations
from flagscale.checks.recompute import recompute_violations
from flagscale.checks.schedule import batch_sizes, whole_batches
from flagscale.errors import Violation


@dataclass(frozen=True)
class Degrees:
    """The degrees of one job; `vpp` is the number of model chunks per stage (1: not interleaved)."""

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


@cache
def divisors(number: int) -> tuple[int, ...]:
    """Return the divisors of a number, the least first."""
    small = [one for one in range(1, isqrt(number) + 1) if number % one == 0]
    return tuple(sorted({*small, *(number // one for one in small)}))


def model_size(values: Mapping[str, Any]) -> int:
    """Return the number of ranks that hold one copy of the model: tp * cp * pp."""
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


def violations(values: Mapping[str, Any], world_size: int) -> Iterator[Violation]:
    """Yield every rule that arguments (by dest) break on `world_size` ranks."""
    yield from _shape_violations(values)
    sizes = {name: values[f"{name}_size"] for name in _DEGREES if values[f"{name}_size"] is not None}
    wrong = [name for name, size in sizes.items() if not isinstance(size, int) or size < 1]
    for name in wrong:
        yield f"{name}_size", f"a degree must be a whole number of at least 1, not {sizes[name]!r}"
    if wrong:
        return
    model = model_size(values)
    if world_size % model:
        yield (
            _largest(sizes),
            f"tensor {sizes['tensor_model_parallel']} x pipeline {sizes['pipeline_model_parallel']} x "
            f"context {sizes['context_parallel']} = {model} ranks hold one model, which does not divide "
            f"the job's {world_size} ranks (hosts x nproc_per_node): {_fitting(model, world_size)}",
        )
        return
    found = degrees(values, world_size)
    yield from _model_violations(values, found)
    yield from _expert_violations(values, found)
    yield from pipeline_violations(values, found.pp, found.vpp)
    yield from _batch_violations(values, found)


_DEGREES = (
    "tensor_model_parallel",
    "pipeline_model_parallel",
    "context_parallel",
    "expert_model_parallel",
    "expert_tensor_parallel",
)


def _fitting(model: int, world_size: int) -> str:
    """Return how to make the ranks a multiple of those that hold one model."""
    more = "use more ranks (experiment.runner: `hostfile` and `nnodes`, or `nproc_per_node`) or lower degrees"
    return more if world_size < model else f"use a multiple of {model} ranks, or other degrees"


def _largest(sizes: Mapping[str, int]) -> str:
    return f"{max(_DEGREES[:3], key=lambda name: sizes[name])}_size"


def _shape_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield what is wrong with the model's shape whatever the degrees are."""
    heads, groups = values.get("num_attention_heads"), values.get("num_query_groups")
    if not isinstance(heads, int) or heads < 1:
        return
    if values.get("kv_channels") is None:
        yield from multiple(values, "hidden_size", heads, f"{heads} attention heads")
    if values.get("group_query_attention") and isinstance(groups, int) and groups > 0 and heads % groups:
        yield "num_query_groups", f"num_query_groups {groups} must divide num_attention_heads {heads}"


def _model_violations(values: Mapping[str, Any], found: Degrees) -> Iterator[Violation]:
    heads = values.get("num_attention_heads")
    groups = values.get("num_query_groups") if values.get("group_query_attention") else None
    split = f"tensor_model_parallel_size {found.tp}"
    yield from multiple(values, "num_attention_heads", found.tp, split)
    yield from multiple(values, "ffn_hidden_size", found.tp, split)
    if isinstance(groups, int) and isinstance(heads, int) and groups > 0:
        unequal = groups % found.tp and found.tp % groups
        if unequal:
            yield "num_query_groups", f"num_query_groups {groups} and {split} do not divide each other"
    if found.cp > 1:
        yield from multiple(values, "seq_length", 2 * found.cp, f"2 x context_parallel_size {found.cp}")
    if values.get("sequence_parallel") and found.tp > 1:
        why = f"sequence parallel: tensor {found.tp} x context {found.cp}"
        yield from multiple(values, "seq_length", found.tp * found.cp, why)


def _expert_violations(values: Mapping[str, Any], found: Degrees) -> Iterator[Violation]:
    experts = values.get("num_experts")
    if not experts:
        if found.ep > 1:
            yield "expert_model_parallel_size", "expert_model_parallel_size > 1 needs num_experts"
        if found.etp != found.tp:  # the engine builds groups of this size in any case
            yield "expert_tensor_parallel_size", "expert_tensor_parallel_size needs num_experts"
        return
    yield from multiple(values, "num_experts", found.ep, f"expert_model_parallel_size {found.ep}")
    yield from multiple(values, "moe_ffn_hidden_size", found.etp, f"expert_tensor_parallel_size {found.etp}")
    shared = "moe_shared_expert_intermediate_size"
    yield from multiple(values, shared, found.tp, f"tensor_model_parallel_size {found.tp}")
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


def _recompute_violations(
    values: Mapping[str, Any], found: Degrees, micro_batches: int
) -> Iterator[Violation]:
    chunks = None if values.get("pipeline_model_parallel_layout") else found.vpp
    yield from recompute_violations(values, found.pp, chunks, micro_batches)


def _batch_violations(values: Mapping[str, Any], found: Degrees) -> Iterator[Violation]:
    micro, batch = values.get("micro_batch_size"), values.get("global_batch_size")
    if not isinstance(micro, int) or micro < 1:
        yield "micro_batch_size", "micro_batch_size is required: a whole number of at least 1"
        return
    if values.get("step_batch_size_schedule"):
        if batch is not None:
            yield "global_batch_size", "give global_batch_size or step_batch_size_schedule, not both"
        yield from _batch_schedule_violations(values, micro, found)
        yield from _recompute_violations(values, found, 1)
        return
    step = micro * found.dp
    batch = step if batch is None else batch
    if batch < 1 or (batch % step and not values.get("decrease_batch_size_if_needed")):
        why = f"micro_batch_size {micro} x data parallel {found.dp}"
        yield "global_batch_size", f"global_batch_size {batch} must be a multiple of {step} ({why})"
        return
    if wrong := interleaving_violation(values, found.pp, found.vpp, batch // step):
        yield "global_batch_size", wrong
    yield from _recompute_violations(values, found, batch // step)
    yield from _evaluation_violations(values, batch, micro, found)


def _batch_schedule_violations(values: Mapping[str, Any], micro: int, found: Degrees) -> Iterator[Violation]:
    """Yield the batch sizes of a schedule that no step can have; the engine finds each when it begins."""
    name, step = "step_batch_size_schedule", micro * found.dp
    if values.get("decrease_batch_size_if_needed"):
        yield "decrease_batch_size_if_needed", f"cannot be combined with `{name}`"
    if values.get("train_iters"):
        # get_train_valid_test_num_samples, in megatron/training/training.py (0.19.2)
        what = f"`{name}` needs `train_samples`: the engine prepares {step} samples per step of `train_iters`"
        yield "train_iters", f"{what}, which larger batches use up; give the length in samples"
    if not isinstance(values.get("seq_length"), int) or values["seq_length"] < 1:
        return  # reported as missing
    try:
        steps = batch_sizes(str(values[name]), values["seq_length"])
    except ValueError as error:
        yield name, str(error)
        return
    if wrong := [batch for _, batch in steps if batch % step]:
        why = f"micro_batch_size {micro} x data parallel {found.dp}"
        yield name, f"its batch sizes must be multiples of {step} ({why}), but {wrong[0]} is not"
    if isinstance(samples := values.get("train_samples"), int):
        before, after = whole_batches(steps, samples)
        if before < after:
            what = f"{samples} samples do not end with a whole batch, and the last one would not be full"
            yield "train_samples", f"{what}; use {before} or {after}"
    # Without a size of its own, an evaluation has one micro-batch per rank.
    yield from _evaluation_violations(values, step, micro, found)


def _evaluation_violations(
    values: Mapping[str, Any], batch: int, micro: int, found: Degrees
) -> Iterator[Violation]:
    evaluated = values.get("eval_global_batch_size")
    step = (values.get("eval_micro_batch_size") or micro) * found.dp
    if (evaluated or batch) % step:
        is_micro = evaluated is None and values.get("eval_micro_batch_size")
        name = "eval_micro_batch_size" if is_micro else "eval_global_batch_size"
        why = f"eval_micro_batch_size {step // found.dp} x data parallel {found.dp}"
        yield name, f"an evaluation step of {evaluated or batch} samples must be a multiple of {step} ({why})"


def multiple(values: Mapping[str, Any], name: str, of: int, why: str) -> Iterator[Violation]:
    """Yield a violation if the argument is a whole number but not a multiple of `of`."""
    value = values.get(name)
    if isinstance(value, int) and value % of:
        yield name, f"{name} {value} must be a multiple of {of} ({why})"
