"""Rules of experts, their router, and the heads of multi-token prediction: the parts of a DeepSeek model."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from flagscale.errors import Violation

BEST = "moe_router_group_best"
"""Our argument (by dest) for how many of their experts groups are compared by."""

_BIASED = ("sigmoid", "sqrtsoftplus")
OTHER_BALANCE = ("sinkhorn", "quantile_balancing")
_OVERLAPPED = ("alltoall", "flex")
_POSITIONS = ("rope", "none")
_WITHIN_CAPACITY = ("aux_loss", "seq_aux_loss", "global_aux_loss", "none")
_NEED_EXPERTS = (
    "moe_ffn_hidden_size",
    "moe_latent_size",
    "moe_pad_expert_input_to_capacity",
    "moe_router_enable_expert_bias",
    "moe_router_group_topk",
)
_NOT_WITH_SINKHORN = ("moe_router_group_topk", "moe_router_topk_scaling_factor", "moe_router_pre_softmax")


def expert_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield every rule of the engine for experts that the arguments (by dest) break."""
    if not values.get("num_experts"):
        for name in _NEED_EXPERTS:
            if (values.get(name) or 0) > 0:
                yield name, f"`{name}` needs `num_experts`"
        return
    tp, etp = values.get("tensor_model_parallel_size") or 1, values.get("expert_tensor_parallel_size")
    if tp > 1 and not values.get("sequence_parallel"):
        yield "num_experts", "experts with tensor_model_parallel_size > 1 need `sequence_parallel: true`"
    if values.get("add_bias_linear") and (etp or tp) > 1:
        what = "experts with biases need expert_tensor_parallel_size 1, or `disable_bias_linear: true`"
        yield "add_bias_linear", what
    kinds, weights = (
        len(given) if isinstance(given := values.get(name), list) else 1
        for name in ("moe_router_load_balancing_type", "moe_aux_loss_coeff")
    )
    if kinds != weights:
        each = f"each of the {kinds} values" if kinds > 1 else "the only value"
        yield "moe_aux_loss_coeff", f"give one value for {each} of moe_router_load_balancing_type"
    yield from _frequency_violations(values)
    for name in ("moe_router_padding_for_quantization", "moe_router_padding_for_fp8"):
        if values.get(name) and not (values.get("fp8") or values.get("fp4")):
            yield name, f"`{name}` needs `fp8_format` or `fp4_format`; remove it"
    if values.get("moe_shared_expert_intermediate_size") and values.get("moe_shared_expert_overlap"):
        dispatcher = values.get("moe_token_dispatcher_type")
        if dispatcher not in _OVERLAPPED:
            what = f"`moe_shared_expert_overlap` needs `moe_token_dispatcher_type: {_OVERLAPPED[0]}`"
            yield "moe_shared_expert_overlap", f"{what}, not {dispatcher}"
    expert_ranks = (etp or tp) * (values.get("expert_model_parallel_size") or 1)
    if values.get("moe_token_dispatcher_type") == "flex" and expert_ranks == 1:
        what = "`moe_token_dispatcher_type: flex` needs ranks that share the experts"
        yield "moe_token_dispatcher_type", f"{what}: use alltoall, or expert_model_parallel_size > 1"
    yield from _capacity_violations(values)
    yield from _router_violations(values)


def _capacity_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    name, balance = "moe_expert_capacity_factor", values.get("moe_router_load_balancing_type")
    if values.get(name) is None:
        if values.get("moe_pad_expert_input_to_capacity"):
            yield "moe_pad_expert_input_to_capacity", f"`moe_pad_expert_input_to_capacity` needs `{name}`"
        return
    for kind in balance if isinstance(balance, list) else [balance]:
        if kind not in _WITHIN_CAPACITY:
            yield name, f"`{name}` is not supported with `moe_router_load_balancing_type: {kind}`"


def _frequency_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield if `moe_layer_freq` does not say of each layer whether it has experts."""
    layers, given = values.get("num_layers"), values.get("moe_layer_freq")
    if given is None:
        return
    pattern = _pattern(given)
    is_valid = pattern > 0 if isinstance(pattern, int) else pattern and all(one in (0, 1) for one in pattern)
    if not is_valid:
        what = "`moe_layer_freq` must be a number of at least 1, or a list of 0 (dense) and 1 (experts)"
        spaces = "; as text, the list has no spaces" if isinstance(given, str) and " " in given else ""
        yield "moe_layer_freq", f"{what}, not {given}{spaces}"
    elif isinstance(pattern, list) and isinstance(layers, int) and len(pattern) != layers:
        yield (
            "moe_layer_freq",
            f"`moe_layer_freq` has {len(pattern)} values, but num_layers is {layers}: give 0 (dense) or 1 "
            "(experts) for each layer",
        )


def expert_layers(values: Mapping[str, Any]) -> tuple[bool, ...]:
    """Return, for each layer in order, whether its MLP has experts; call it on checked values."""
    layers = int(values["num_layers"])
    if not values.get("num_experts"):
        return (False,) * layers
    frequency = _pattern(values.get("moe_layer_freq", 1))
    if isinstance(frequency, list):
        return tuple(map(bool, frequency))
    return tuple(layer % (frequency or 1) == 0 for layer in range(layers))


_EXPRESSION = re.compile(r"[][()\d,+*]+", re.ASCII)
"""What the engine evaluates; it refuses spaces."""


def _pattern(given: Any) -> list[Any] | int | None:
    """Return the number or list that `moe_layer_freq` holds, also as an expression; None if it is neither."""
    if not isinstance(given, str):
        return given if isinstance(given, list | int) else None
    if not _EXPRESSION.fullmatch(given):
        return None
    try:
        return _evaluated(ast.parse(given, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _evaluated(tree: ast.expr) -> list[Any] | int | None:
    """Return the value of a sum or product of lists and numbers, None if it is something else."""
    if isinstance(tree, ast.Constant) and isinstance(tree.value, int):
        return tree.value
    if isinstance(tree, ast.List):
        return [_evaluated(item) for item in tree.elts]
    if isinstance(tree, ast.BinOp):
        left, right = _evaluated(tree.left), _evaluated(tree.right)
        if isinstance(tree.op, ast.Mult) and isinstance(left, int):
            left, right = right, left
        if isinstance(tree.op, ast.Add) and isinstance(left, list) and isinstance(right, list):
            return left + right
        if isinstance(tree.op, ast.Mult) and isinstance(left, list) and isinstance(right, int):
            return left * min(right, _MOST_LAYERS)
    return None


_MOST_LAYERS = 100_000
"""Limits what a slip of the finger in a pattern can cost."""


def _router_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    score, balance = values.get("moe_router_score_function"), balance_of(values)
    if values.get("moe_router_enable_expert_bias") and score not in _BIASED:
        what = "`moe_router_enable_expert_bias` needs `moe_router_score_function: sigmoid`"
        yield "moe_router_enable_expert_bias", what
    is_plain = score == "softmax" and not values.get("moe_router_pre_softmax")
    if values.get("moe_router_topk") == 1 and is_plain and balance != "sinkhorn":
        what = "`moe_router_topk: 1` needs `moe_router_pre_softmax: true`, or the router would not learn"
        yield "moe_router_topk", what
    if balance in OTHER_BALANCE and values.get("moe_aux_loss_coeff") not in (None, 0, [0]):
        what = f"`moe_router_load_balancing_type: {balance}` has no auxiliary loss"
        yield "moe_aux_loss_coeff", f"{what}; remove `moe_aux_loss_coeff`"
    for name in ("moe_router_num_groups", "moe_router_fusion") if balance == "quantile_balancing" else ():
        if values.get(name):
            yield name, f"`{name}` is not supported with `moe_router_load_balancing_type: {balance}`"
    groups, chosen = values.get("moe_router_num_groups"), values.get("moe_router_group_topk")
    if not chosen:
        return
    if not groups:
        yield "moe_router_group_topk", "`moe_router_group_topk` needs `moe_router_num_groups`"
    elif values["num_experts"] % groups:
        what = f"moe_router_num_groups {groups} does not divide num_experts {values['num_experts']}"
        yield "moe_router_num_groups", what
    elif chosen > groups:
        what = f"moe_router_group_topk {chosen} is larger than moe_router_num_groups {groups}"
        yield "moe_router_group_topk", what


def balance_of(values: Mapping[str, Any]) -> Any:
    """Return the kind of load balancing; the engine's parser makes a list of a single one."""
    given = values.get("moe_router_load_balancing_type")
    return given[0] if isinstance(given, list) and len(given) == 1 else given


def silent_router_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the arguments (by dest) of a router that the engine accepts, and ignores or computes wrongly."""
    experts, topk = values.get("num_experts"), values.get("moe_router_topk") or 1
    if not experts:
        return
    for name in ("moe_shared_expert_gate", "moe_shared_expert_overlap"):
        if values.get(name) and not values.get("moe_shared_expert_intermediate_size"):
            yield name, f"`{name}` has no effect without `moe_shared_expert_intermediate_size`"
    balance = balance_of(values)
    if values.get("moe_router_enable_expert_bias") and balance in OTHER_BALANCE:
        what = f"has no effect with `moe_router_load_balancing_type: {balance}`; remove one"
        yield "moe_router_enable_expert_bias", f"`moe_router_enable_expert_bias` {what}"
    for name in filter(values.get, _NOT_WITH_SINKHORN if balance == "sinkhorn" else ()):
        yield name, f"`{name}` has no effect with `moe_router_load_balancing_type: sinkhorn`; remove one"
    groups, chosen = values.get("moe_router_num_groups"), values.get("moe_router_group_topk")
    if groups and not chosen:
        what = "`moe_router_num_groups` has no effect without `moe_router_group_topk`"
        yield "moe_router_num_groups", what
    if not groups or not chosen or experts % groups:
        return
    if chosen > topk:
        what = (
            f"moe_router_group_topk {chosen} is larger than moe_router_topk {topk}: all groups would score 0"
        )
        yield "moe_router_group_topk", what
    elif chosen * (experts // groups) < topk:
        what = (
            f"{chosen} groups of {experts // groups} experts have fewer than moe_router_topk {topk} experts"
        )
        yield "moe_router_group_topk", what


def group_routing_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield why the number of scores by which groups are compared has no effect, or is impossible."""
    best = values.get(BEST)
    if best is None:
        return
    needed = ("num_experts", "moe_router_num_groups", "moe_router_group_topk")
    if missing := next((name for name in needed if not values.get(name)), None):
        yield BEST, f"`{BEST}` has no effect without `{missing}`"
    elif values.get("moe_router_fusion"):
        yield BEST, f"`{BEST}` is ignored with `moe_router_fusion`; remove one"
    elif (groups := values["moe_router_num_groups"]) > 0:
        size = values["num_experts"] // groups
        if not 0 < best <= size:
            yield BEST, f"{BEST} {best} must be from 1 to {size}, the experts of a group"


def ineffective_remarks(values: Mapping[str, Any], given: Collection[str]) -> Iterator[Violation]:
    """Yield the `given` arguments (by dest) of experts and heads that the model does not have."""
    for prefix, needed in (("moe_", "num_experts"), ("mtp_", "mtp_num_layers")):
        if not values.get(needed):
            for name in given:
                if name.startswith(prefix) and name != needed and values.get(name):
                    yield name, f"has no effect without `{needed}`"


def head_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield every rule of the engine for the heads of multi-token prediction that the arguments break."""
    if (values.get("mtp_num_layers") or 0) < 1:
        return
    kind = values.get("position_embedding_type")
    if kind not in _POSITIONS:
        what = f"`mtp_num_layers` is not supported with `position_embedding_type: {kind}`; use rope or none"
        yield "mtp_num_layers", what
    layers = values.get("recompute_num_layers")
    if values.get("recompute_method") == "uniform" and isinstance(layers, int) and layers > 1:
        what = "`recompute_method: uniform` with `mtp_num_layers` needs `recompute_num_layers: 1`"
        yield "recompute_num_layers", f"{what}, not {layers}"
