"""The space of a tuner: the values that a user lists for each dimension, or all that may be legal.

Names and meanings of the dimensions are those of FlagScale v0.6.0 (flagscale/auto_tuner/search/searcher.py);
any other argument of the engine may be a dimension too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagscale.checks.degrees import divisors
from flagscale.checks.recompute import has_recompute_schedule
from flagscale.checks.worker import Capabilities
from flagscale.errors import Problem, UserError, nearest
from flagscale.frozen import dataclass

AUTO = "auto"
DP, TP, PP = "data_parallel_size", "tensor_model_parallel_size", "pipeline_model_parallel_size"
CP, EP = "context_parallel_size", "expert_model_parallel_size"
PER_CHUNK, MICRO = "num_layers_per_virtual_pipeline_stage", "micro_batch_size"
SEQUENCE, DISTRIBUTED = "sequence_parallel", "use_distributed_optimizer"
USE, GRANULARITY, METHOD, LAYERS = (
    *("use_recompute", "recompute_granularity", "recompute_method", "recompute_num_layers"),
)
DEGREES = (TP, PP, CP, EP)
RECOMPUTE = (USE, GRANULARITY, METHOD, LAYERS)
DIMENSIONS = (DP, *DEGREES, PER_CHUNK, MICRO, SEQUENCE, DISTRIBUTED, *RECOMPUTE)
"""The dimensions of v0.6.0. Those that a space does not name are `auto`."""

Changes = Mapping[str, Any]
"""Arguments of the engine (by dest) with the values of a candidate; None: not given."""


@dataclass(frozen=True)
class Space:
    """The values of each dimension, and the job whose arguments they change."""

    choices: Mapping[str, tuple[Any, ...]]
    values: Mapping[str, Any]
    """The arguments of the job (by dest), defaults included."""
    world_size: int
    machine: Capabilities
    where: str = "experiment.auto_tuner.space"
    """The place to blame."""


def read_space(
    given: Mapping[str, Any],
    values: Mapping[str, Any],
    world_size: int,
    per_host: int,
    machine: Capabilities,
    where: Mapping[str, str] | None = None,
) -> Space:
    """Return the values of each dimension; `auto` and absent dimensions become the values that may be legal.

    Args:
        given: the user's dimensions, each a list of values, one value, or `auto`.
        values: the arguments of the job (by dest), defaults included.
        world_size: ranks.
        per_host: ranks on a host, the most for tensor parallelism.
        machine: where the ranks run.
        where: the place of each given dimension, and of the space itself ("").

    Raises:
        UserError: with every dimension that cannot be read.
    """
    places = where or {}
    whole = places.get("", "experiment.auto_tuner.space")
    auto, problems = _auto(values, world_size, per_host), []
    choices = dict(auto)
    if values.get("hetero_layout"):
        what = "meshes have degrees of their own, which the tuner does not change"
        problems.append(Problem(what, whole, "remove `enable_hetero` to tune an ordinary job"))
    if not values.get("global_batch_size"):
        what = "`global_batch_size` is required: candidates are compared by the time of one step"
        problems.append(Problem(what, whole))
    for name, value in given.items():
        place = places.get(name, whole)
        if name not in DIMENSIONS and (name not in values or name in _OF_THE_TRAINING):
            what = f"`{name}` cannot be tuned: it is no dimension, and no argument of the engine"
            if name in values:
                what = f"`{name}` cannot be tuned: it changes the training, not only its speed"
            problems.append(Problem(what, place, nearest(name, {*DIMENSIONS, *values})))
        elif value == AUTO and name not in DIMENSIONS:
            what = f"`{name}: auto` is not known; list its values: [...]"
            problems.append(Problem(what, place, f"auto is for {', '.join(DIMENSIONS)}"))
        elif value not in (AUTO, None):
            listed = value if isinstance(value, list | tuple) else [value]
            wrong = [one for one in listed if not _is_possible(name, one)]
            if wrong or not listed:
                kind = (
                    "true or false" if name in _SWITCHES else "whole numbers" if name in _WHOLE else "values"
                )
                said = f"not {wrong[0]!r}" if wrong else "but it is empty"
                problems.append(Problem(f"`{name}` takes a list of {kind} or `auto`, {said}", place))
            else:
                choices[name] = tuple(dict.fromkeys(listed))
    if choices[USE] == (False,):
        problems += (
            Problem(
                f"`{name}` has no effect, because `{USE}` is [false]", places.get(name, whole), "remove one"
            )
            for name in (GRANULARITY, METHOD, LAYERS)
            if given.get(name) not in (AUTO, None)
        )
    if problems:
        raise UserError(problems)
    return Space(_as_given(choices, given, values), values, world_size, machine, whole)


_OF_THE_TRAINING = (
    *("global_batch_size", "seq_length", "num_layers", "hidden_size", "ffn_hidden_size"),
    *("num_attention_heads", "num_query_groups", "num_experts", "moe_router_topk", "moe_ffn_hidden_size"),
    *("vocab_size", "lr", "min_lr", "seed", "optimizer", "weight_decay", "clip_grad", "mtp_num_layers"),
    *("kv_channels", "multi_latent_attention", "normalization", "swiglu", "position_embedding_type"),
    *("hidden_dropout", "attention_dropout", "untie_embeddings_and_output_weights", "mock_data"),
    *("max_position_embeddings", "tokenizer_type", "tokenizer_model", "data_path", "train_data_path"),
)
"""Arguments whose values cannot be compared by the time of a step: they make another training."""
_SWITCHES = (SEQUENCE, DISTRIBUTED, USE)
_WHOLE = (DP, *DEGREES, PER_CHUNK, MICRO, LAYERS)


def _is_possible(name: str, value: Any) -> bool:
    if name in _SWITCHES:
        return isinstance(value, bool)
    if name in _WHOLE:
        return type(value) is int and value >= (0 if name == PER_CHUNK else 1)
    return value is None or isinstance(value, str | int | float | bool)


def _auto(values: Mapping[str, Any], world_size: int, per_host: int) -> dict[str, tuple[Any, ...]]:
    """Return the values of each dimension that can be legal, as far as a product of degrees says."""
    ranks, layers = divisors(world_size), int(values.get("num_layers") or 1)
    return {
        DP: ranks,
        TP: tuple(size for size in ranks if size <= per_host),
        PP: tuple(size for size in ranks if size <= layers),
        CP: ranks,
        EP: tuple(size for size in divisors(int(values.get("num_experts") or 1)) if size <= world_size),
        PER_CHUNK: (0, *divisors(layers)),
        MICRO: divisors(int(values.get("global_batch_size") or 1)),
        SEQUENCE: (True, False),
        DISTRIBUTED: (True, False),
        USE: (False, True),
        GRANULARITY: ("selective", "full"),
        METHOD: ("uniform", "block"),
        LAYERS: (AUTO,),
    }


def _as_given(
    choices: Mapping[str, tuple[Any, ...]], given: Mapping[str, Any], values: Mapping[str, Any]
) -> dict[str, tuple[Any, ...]]:
    """Return the choices with dimensions that the job has decided in its own way as the job has them."""
    fixed: dict[str, tuple[Any, ...]] = {}
    if values.get("pipeline_model_parallel_layout") is not None:
        fixed |= {PP: (values[PP],), PER_CHUNK: (0,)}
    if has_recompute_schedule(values):
        fixed |= {USE: (None,)}
    absent = {name: one for name, one in fixed.items() if given.get(name) is None}
    return {**choices, **absent}
