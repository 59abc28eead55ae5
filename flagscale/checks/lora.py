"""The arguments of a training of adapters (LoRA): what they mean, and the rules between them and others.

`W x` of a projection becomes `W x + alpha / rank * B (A x)`; only A `[rank, in]` and B `[out, rank]` are
trained and saved. The base, all other weights, is loaded from `pretrained_checkpoint` at every start.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os.path import realpath
from typing import Any

from flagscale.checks import pictures
from flagscale.checks.latent import MLA
from flagscale.errors import Violation, nearest

RANK, ALPHA, DROPOUT, TARGETS = LORA = ("lora_rank", "lora_alpha", "lora_dropout", "lora_targets")
BASE = "lora_base"
"""In the record of a checkpoint of adapters: the identity of the base that they were trained on."""
PRETRAINED = "pretrained_checkpoint"
LAYERS: Mapping[str, tuple[str, ...]] = {
    "linear_qkv": ("q_proj", "k_proj", "v_proj"),
    "linear_q_proj": ("q_proj",),
    "linear_q_down_proj": ("q_a_proj",),
    "linear_q_up_proj": ("q_b_proj",),
    "linear_kv_down_proj": ("kv_a_proj_with_mqa",),
    "linear_kv_up_proj": ("kv_b_proj",),
    "linear_proj": ("o_proj",),
    "linear_fc1": ("gate_proj", "up_proj"),
    "linear_fc2": ("down_proj",),
}
"""Megatron's linear layers, and the projections that each joins, in its order, by Hugging Face's names."""
_OF_MLA = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
_LIMITS = "adapters are trained"
_REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "hetero_layout": ((None,), "over unequal meshes"),
    "use_torch_fsdp2": ((None, False), "with sharded data parallel"),
    "use_megatron_fsdp": ((None, False), "with sharded data parallel"),
    "fp8": ((None,), "in fp8"),
    "fp4": ((None,), "in fp4"),
    "moe_grouped_gemm": ((None, False), "on experts that share one matrix product"),
    "moe_shared_expert_overlap": ((None, False), "on shared experts that are computed meanwhile"),
    "moe_use_upcycling": ((None, False), "while experts are made of a dense model"),
    "mla_down_proj_fusion": ((None, False), "on fused projections to latents"),
    "attention_output_gate": ((None, False), "on an attention whose queries are joined with a gate"),
    "spec": ((None, []), "on a layer specification of your own"),
    "finetune_with_optim": ((None, False), "with the optimizer's state of another model"),
    "use_checkpoint_args": ((None, False), "with arguments that a checkpoint holds"),
    **dict.fromkeys(pictures.PARTS, ((None, False), "with everything else frozen already")),
}
"""By dest: the values that have no effect, and with what adapters cannot be combined."""


def trains_adapters(values: Mapping[str, Any]) -> bool:
    """Return whether arguments (by dest) are those of a training of adapters."""
    return values.get(RANK) is not None


def available(values: Mapping[str, Any]) -> list[str]:
    """Return the projections that a model with these arguments (by dest) has."""
    if not values.get(MLA):
        attention = [*LAYERS["linear_qkv"]]
    elif values.get("q_lora_rank") is None:
        attention = ["q_proj", "kv_a_proj_with_mqa", "kv_b_proj"]
    else:
        attention = [*_OF_MLA]
    gate = ["gate_proj"] if values.get("swiglu") or values.get("quick_geglu") else []
    return [*attention, "o_proj", *gate, "up_proj", "down_proj"]


def projections(values: Mapping[str, Any]) -> list[str]:
    """Return the projections that get adapters, in the order of `available`."""
    found = available(values)
    wanted = {part for name in _targets(values) for part in LAYERS.get(name, (name,))}
    return [name for name in found if name in wanted] if wanted else found


def scale(values: Mapping[str, Any]) -> float:
    """Return the factor of the adapters' product; `lora_alpha` is the rank if it is not given."""
    alpha = values.get(ALPHA)
    return 1.0 if alpha is None else float(alpha) / int(values[RANK])


def _targets(values: Mapping[str, Any]) -> Sequence[str]:
    given = values.get(TARGETS) or ()
    return given.split() if isinstance(given, str) else [str(name) for name in given]


def lora_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield every rule for adapters that the arguments (by dest) break."""
    if not trains_adapters(values):
        for name in (ALPHA, DROPOUT, TARGETS):
            if values.get(name):
                yield name, f"`{name}` has no effect without `{RANK}`: set the rank, or remove it"
        return
    yield from _number_violations(values)
    yield from _target_violations(values)
    yield from _folder_violations(values)
    for name, (off, what) in _REFUSED.items():
        if values.get(name) not in off:
            shown = "hetero_process_meshes" if name == "hetero_layout" else name
            yield name, f"`{shown}` cannot be combined with `{RANK}`: no {_LIMITS} {what}; remove one of them"
    layers = values.get("transformer_impl")
    if layers not in (None, "torch", "local"):
        what = f"`{RANK}` needs `transformer_impl: torch` or `local`, not {layers}"
        yield "transformer_impl", f"{what}: {_LIMITS} on Megatron's own linear layers"
    yield from _parallel_violations(values)


def _number_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    rank, alpha, dropout = (values.get(name) for name in (RANK, ALPHA, DROPOUT))
    if not isinstance(rank, int) or rank < 1:
        yield RANK, f"`{RANK}` must be at least 1, not {rank}; remove it to train the whole model"
    if isinstance(alpha, int | float) and alpha <= 0:
        yield ALPHA, f"`{ALPHA}` must be more than 0, not {alpha:g}"
    if isinstance(dropout, int | float) and (dropout < 0 or dropout >= 1):
        yield DROPOUT, f"`{DROPOUT}` must be at least 0 and less than 1, not {dropout:g}"


def _target_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    has = available(values)
    known = {*LAYERS, *(part for parts in LAYERS.values() for part in parts)}
    for name in _targets(values):
        parts = LAYERS.get(name, (name,))
        if name not in known:
            yield TARGETS, f"`{TARGETS}` names {name!r}, which is no projection; {nearest(name, known)}"
        elif not set(parts) & set(has) or _is_of_other_attention(name, values):
            what = f"`{TARGETS}` names {name}, but this model has no such projection"
            yield TARGETS, f"{what}; {_hint(name, has)}"


def _is_of_other_attention(name: str, values: Mapping[str, Any]) -> bool:
    """Return whether a name is of a linear layer of the other kind of attention, with or without MLA."""
    if name == "linear_qkv":
        return bool(values.get(MLA))
    return name.startswith(("linear_q_", "linear_kv_")) and not values.get(MLA)


def _hint(name: str, has: Sequence[str]) -> str:
    needs = {
        "gate_proj": "it needs `swiglu: true`",
        **dict.fromkeys(_OF_MLA, f"it needs `{MLA}: true` (q_a_proj and q_b_proj: `q_lora_rank` too)"),
    }
    return f"{needs[name]}. This model has {', '.join(has)}" if name in needs else f"it has {', '.join(has)}"


def _folder_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield that the base is not named, or is in the folder of the adapters' checkpoints."""
    base = values.get(PRETRAINED)
    if not base:
        what = "the folder of the checkpoint of the base, which is loaded at every start"
        yield PRETRAINED, f"`{RANK}` needs `{PRETRAINED}`: {what}"
    for name in ("load", "save"):
        if base and values.get(name) and realpath(values[name]) == realpath(base):
            what = f"`{name}` and `{PRETRAINED}` are the same folder, {base}"
            yield name, f"{what}: the base and the adapters' checkpoints need a folder each"
    if values.get("ckpt_format") not in (None, "torch_dist"):
        yield "ckpt_format", f"`{RANK}` needs `ckpt_format: torch_dist`, not {values['ckpt_format']}"


def _parallel_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    tp, groups = values.get("tensor_model_parallel_size") or 1, values.get("num_query_groups")
    is_grouped = values.get("group_query_attention") and not values.get(MLA)
    is_split = isinstance(groups, int) and isinstance(tp, int) and groups < tp
    if is_grouped and is_split and {*projections(values)} & {*LAYERS["linear_qkv"]}:
        what = f"num_query_groups {groups} is less than tensor_model_parallel_size {tp}"
        yield "num_query_groups", f"{what}: adapters need a group per rank; use a smaller size"
    expert_tp = values.get("expert_tensor_parallel_size") or tp
    if values.get("num_experts") and values.get(DROPOUT) and isinstance(expert_tp, int) and expert_tp > 1:
        what = f"`{DROPOUT}` on experts needs `expert_tensor_parallel_size: 1`, not {expert_tp}"
        yield DROPOUT, f"{what}: ranks that share an expert would drop different inputs"


def adapter_violations(
    name: str, saved: Mapping[str, Any], now: Mapping[str, Any], resumes: bool
) -> Iterator[Violation]:
    """Yield why a run cannot load a checkpoint, if one of the two is of adapters.

    `name`: how messages call the checkpoint; `saved`: what was recorded with it; `now`: the run's arguments.
    """
    before, after = saved.get(RANK), now.get(RANK)
    if before is None and after is None:
        return
    if before is None:
        what = f"{name} holds a whole model, but this run trains adapters (`{RANK}: {after}`)"
        yield "load", f"{what}: name it as `{PRETRAINED}`, and another folder as `load` and `save`"
        return
    if after is None:
        where = "load" if resumes or not now.get(PRETRAINED) else PRETRAINED
        what = f"{name} holds only adapters of rank {before}, not their base"
        yield where, f"{what}: set `{RANK}: {before}` to continue them, or merge them into the base first"
        return
    other = "or start another run (experiment.exp_dir, `load`)"
    if before != after:
        yield RANK, f"`{RANK}` is {after}, but {name} was trained with {before}: use {before}, {other}"
    elif scale(saved) != scale(now):
        alpha = scale(saved) * before
        what = f"`{ALPHA}` is {scale(now) * after:g}, but {name} was trained with {alpha:g}"
        yield ALPHA, f"{what}: use {alpha:g}, {other}"
    targets = projections({**now, TARGETS: saved.get(TARGETS)})
    if targets != projections(now):
        what = f"`{TARGETS}` are {', '.join(projections(now))}, but {name} has {', '.join(targets)}"
        yield TARGETS, f"{what}: use these, {other}"
    if saved.get(BASE) and now.get(BASE) and saved[BASE] != now[BASE]:
        what = f"{name} has the adapters of another base than {now.get(PRETRAINED)}"
        yield PRETRAINED, f"{what}: use the base that they were trained on, {other}"
