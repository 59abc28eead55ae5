"""The degrees that a mesh may have on a pool, by the rules of an ordinary layout; those worth trying."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import lcm
from typing import Any, NamedTuple

from flagscale.checks.context import context_violations
from flagscale.checks.degrees import divisors, violations
from flagscale.checks.experts import expert_violations
from flagscale.planner.search.cluster import Pool
from flagscale.planner.search.mesh_costs import Costs, LayerCosts, MeshDegrees
from flagscale.planner.training import Training

LEAST_TOKENS, MOST_TOKENS = 512, 32768
"""Tokens of a micro-batch on one rank, before tensor parallelism divides them: context parallelism does not
go below the first, micro-batches of several samples not above the second. Nothing gets faster beyond them."""


class Option(NamedTuple):
    """One way to be a mesh, apart from the number of its stages."""

    degrees: MeshDegrees
    costs: LayerCosts
    most_stages: int


class Mode(NamedTuple):
    """The arguments that all meshes have in common, because the engine takes them once for all ranks."""

    modules: tuple[str, ...] = ()
    """Recomputed in every layer; without any, each stage may recompute some of its layers."""
    expert_tp: int | None = None
    """None: that of tensor parallelism in each mesh."""


def modes(training: Training) -> list[Mode]:
    """Return the modes that are searched."""
    model, kinds = training.model, {*training.model.experts_in}
    modules: list[tuple[str, ...]] = [()]
    if training.stores_scores or training.implementation == "local":
        modules.append(("core_attn",))
    fails = model.linear_bias and training.implementation in ("torch", "local")  # see checks/megatron.py
    if sum(model.experts_in) <= model.layers / 2 and not fails:
        modules.append(("mlp",))
    if True in kinds:
        modules.append(("moe_act",))
    if model.attention == "mla":
        modules.append(("mla_up_proj",))
    return [Mode(one, etp) for etp in ((None, 1) if model.experts else (None,)) for one in modules]


def rule_values(training: Training, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return arguments (by dest) for the rule functions, with neutral values of everything that is searched.

    `given`: the user's arguments, if known; otherwise they follow from the training.
    """
    model = training.model
    values = (
        dict(given)
        if given
        else {
            "num_layers": model.layers,
            "hidden_size": model.hidden,
            "num_attention_heads": model.heads,
            "group_query_attention": model.groups != model.heads,
            "num_query_groups": model.groups,
            "kv_channels": model.head_dim,
            "ffn_hidden_size": model.ffn,
            "seq_length": training.sequence,
            "num_experts": model.experts or None,
            "moe_ffn_hidden_size": model.expert_ffn or None,
            "moe_shared_expert_intermediate_size": model.shared_ffn or None,
            "moe_router_topk": model.topk or None,
            "multi_latent_attention": model.attention == "mla",
            "mtp_num_layers": model.prediction_heads or None,
            "untie_embeddings_and_output_weights": not model.tied,
            "add_bias_linear": model.linear_bias,
            "transformer_impl": training.implementation,
            "use_distributed_optimizer": training.numerics.distributed,
            "overlap_grad_reduce": training.overlap_gradients,
            "make_vocab_size_divisible_by": 1,
        }
    )
    # The rules check all sizes of a schedule, and refuse another one beside it.
    batch = None if values.get("step_batch_size_schedule") else training.batch
    return {**values, **SEARCHED, "global_batch_size": batch}


SEARCHED: Mapping[str, Any] = {
    **{f"{name}_model_parallel_size": 1 for name in ("tensor", "pipeline", "expert")},
    "context_parallel_size": 1,
    "expert_tensor_parallel_size": None,
    "micro_batch_size": 1,
    "sequence_parallel": False,
    **dict.fromkeys(
        (
            "num_virtual_stages_per_pipeline_rank",
            "num_layers_per_virtual_pipeline_stage",
            "pipeline_model_parallel_layout",
            "decoder_first_pipeline_num_layers",
            "decoder_last_pipeline_num_layers",
            "microbatch_group_size_per_vp_stage",
            "hetero_layout",
            "recompute_activations",
            "recompute_granularity",
            "recompute_modules",
            "recompute_method",
            "recompute_num_layers",
            "recompute_granularity_per_stage_micro_batch",
            "recompute_method_per_stage_micro_batch",
            "recompute_num_layers_per_stage_micro_batch",
        )
    ),
}


def legal_degrees(
    training: Training, values: Mapping[str, Any], pool: Pool, mode: Mode
) -> tuple[MeshDegrees, ...]:
    """Return the degrees, with one sample and the least dp, that no rule of an ordinary layout refuses.

    Tensor parallelism stays within a host. The loops leave out only what cannot fit on the devices.
    """
    found = []
    experts = training.model.experts
    for tp in divisors(pool.per_host):
        sp = tp > 1 and training.implementation != "local"  # its norm does not support it
        etp = mode.expert_tp or tp
        for cp in range(1, pool.devices // tp + 1):
            if training.sequence % cp or (cp > 1 and training.sequence // cp < LEAST_TOKENS):
                continue
            for ep in divisors(experts) if experts else (1,):
                dp = lcm(tp * cp, etp * ep) // (tp * cp)
                one = MeshDegrees(tp, cp, ep, etp, dp, 1, sp)
                if one.per_stage <= pool.devices and not is_refused(values, one, mode):
                    found.append(one)
    return tuple(found)


def is_refused(values: Mapping[str, Any], one: MeshDegrees, mode: Mode) -> bool:
    """Return whether a rule of ordinary layouts refuses a mesh of one stage and one micro-batch."""
    of_mesh = {
        **values,
        "tensor_model_parallel_size": one.tp,
        "context_parallel_size": one.cp,
        "expert_model_parallel_size": one.ep,
        "expert_tensor_parallel_size": mode.expert_tp,
        "sequence_parallel": one.sequence_parallel,
        "micro_batch_size": one.micro_batch,
        "global_batch_size": one.micro_batch * one.dp,
        "step_batch_size_schedule": None,
        "eval_micro_batch_size": None,
        "eval_global_batch_size": None,
    }
    checks = (violations(of_mesh, one.per_stage), context_violations(of_mesh), expert_violations(of_mesh))
    return any(True for found in checks for _ in found)


def options(
    legal: Sequence[MeshDegrees],
    pool: Pool,
    costs: Costs,
    mode: Mode,
    samples: int,
    micro_batches: int,
    stages: int,
    most_tokens: float,
) -> list[Option]:
    """Return the options with `samples` per micro-step of which no other is better in every respect.

    `most_tokens`: what `MOST_TOKENS` allows, in samples on one rank without context parallelism.
    """
    found = []
    for one in legal:
        for dp in divisors(samples):
            # The same rule as in `checks.degrees`, before the costs are asked for.
            if dp % one.dp or one.tp * one.cp * dp > pool.devices:
                continue
            degrees = one._replace(dp=dp, micro_batch=samples // dp)
            if degrees.micro_batch > max(1, most_tokens * one.cp):
                continue
            layer = costs.layer(pool, degrees, mode.modules, micro_batches)
            # A recomputed layer, too, is whole while its backward pass runs.
            if layer.static + layer.kept + layer.fixed <= layer.room:
                found.append(Option(degrees, layer, min(stages, pool.devices // degrees.per_stage)))
    return list(_undominated(found))


def _undominated(found: Sequence[Option]) -> Iterator[Option]:
    import numpy as np  # here: only searches need it, once they begin

    if not found:
        return
    # Everything that makes a mesh worse; fewer holders of an activation make its messages slower.
    rows = np.array(
        [(one.degrees.per_stage, -one.degrees.holders, *one.costs[:-1], -one.costs.room) for one in found]
    )
    worse_or_equal = (rows[:, None] >= rows[None]).all(axis=2)
    is_equal = worse_or_equal & worse_or_equal.T
    earlier = np.tri(len(rows), k=-1, dtype=bool)
    is_beaten = (worse_or_equal & (~is_equal | earlier)).any(axis=1)
    yield from (found[number] for number in np.flatnonzero(~is_beaten))
