"""The bytes that a transformer layer keeps for its backward pass, from a table of measured layers.

`layer_memory.json` is generated from the layers themselves (`python -m benchmarks.layer_memory --write`); for
TransformerEngine, which cannot be measured without CUDA, see te_layer.py. For each kind of attention and of
MLP, the two halves of a layer, it lists modules with the bytes that they keep as a sum of terms. A term is a
product of sizes, divided by degrees: `tokens*hidden_size/tensor_model_parallel_size`. The names are those of
the engine's arguments; `tokens` is `seq_length` times `micro_batch_size`, divided by `context_parallel_size`.
What an option of a layer adds, or takes away, is listed apart; so is what several options change together.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.errors import Problem, UserError, Violation, nearest
from flagscale.frozen import dataclass

TABLE = Path(__file__).with_suffix(".json")
FULL = "full"
AGAIN = "recompute "
"""Before the name of a module, in the table: the option that it is computed again."""
DIRECT = "mla_without_q_lora"
"""Latent attention whose queries are projected at once, in the table."""

OPTIONS: Mapping[str, str] = {
    "layer_norm": "LayerNorm instead of RMSNorm",
    "qk_norm": "norms of queries and keys; latent attention always has norms of its latents",
    "dropout": "dropout behind attention and behind the MLP",
    "attention_dropout": "dropout of the weights of attention",
    "unrotated": "positions that do not rotate queries and keys",
    "a2a": "context parallel ranks exchange heads: `cp_comm_type` a2a or a2a+p2p",
    "ungated": "GELU, or another activation without a gate, instead of SwiGLU",
    "grouped": "`moe_grouped_gemm`: one product for all experts of a rank",
    "aux_loss": "an auxiliary loss of the router over a micro-batch",
    "seq_aux_loss": "an auxiliary loss of the router over each sample",
    "global_aux_loss": "an auxiliary loss of the router over the whole batch",
    "sigmoid": "`moe_router_score_function: sigmoid` instead of softmax",
    "expert_bias": "`moe_router_enable_expert_bias`; needs `sigmoid`",
    "router_fp32": "`moe_router_dtype: fp32`",
    "shared_gate": "`moe_shared_expert_gate`",
    "on_cpu": "the kernels of processors, which keep other masks and statistics than those of devices",
}
"""Options that a layer may have besides its kind. Biases keep nothing."""

_ARGUMENTS = {
    "layer_norm": "normalization",
    "qk_norm": "qk_layernorm",
    "dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
    "unrotated": "position_embedding_type",
    "a2a": "cp_comm_type",
    "ungated": "swiglu",
    "grouped": "moe_grouped_gemm",
    **{f"{scope}aux_loss": "moe_router_load_balancing_type" for scope in ("", "seq_", "global_")},
    "sigmoid": "moe_router_score_function",
    "expert_bias": "moe_router_enable_expert_bias",
    "router_fp32": "moe_router_dtype",
    "shared_gate": "moe_shared_expert_gate",
    "implementation": "transformer_impl",
    "attention": "transformer_impl",
    "parallelism": "tensor_model_parallel_size",
}
"""The argument to blame for an option or a part of the kind."""
_BATCH = {"seq_length", "micro_batch_size"}

Terms = Mapping[str, int]
"""Bytes per unit of each term."""


@dataclass(frozen=True)
class LayerKind:
    """The properties that decide which tensors a layer keeps; sizes and degrees decide how large they are."""

    implementation: str
    """torch or local."""
    attention: str
    """mha (a group for each head), gqa (fewer groups than heads) or mla (without `q_lora_rank` too)."""
    mlp: str
    """dense, moe or moe_shared (with a shared expert)."""
    sequence_parallel: bool = False
    dtype: str = "bfloat16"
    """The precision of activations: bfloat16, float16 or float32."""
    recompute: tuple[str, ...] = ()
    """The `recompute_modules` of selective recomputation, or `(FULL,)`."""
    options: tuple[str, ...] = ()
    """Names of `OPTIONS`."""


@dataclass(frozen=True)
class Part:
    """The bytes that one module of a layer keeps."""

    module: str
    nbytes: int
    terms: Terms


def kept_bytes(kind: LayerKind, sizes: Mapping[str, int | None]) -> int:
    """Return the bytes that one layer keeps on one rank for one micro-batch (see `kept_parts`)."""
    return sum(part.nbytes for part in kept_parts(kind, sizes))


def kept_parts(kind: LayerKind, sizes: Mapping[str, int | None]) -> tuple[Part, ...]:
    """Return what each module of one layer keeps on one rank for one micro-batch.

    `sizes` are arguments of the engine by dest, and null is the same as absent; of the degrees, those that
    are absent are 1, and `expert_tensor_parallel_size` is that of tensor parallelism.
    `exchange_parallel_size` is how many ranks exchange heads with the option `a2a` (all that divide the
    sequence, if absent). Experts are assumed to be balanced. Raises `UserError` with every kind and option
    that the table does not have, and every size that is missing or not a positive whole number.
    """
    given = {name: size for name, size in sizes.items() if size is not None}
    if wrong := [name for name, size in given.items() if type(size) is not int or size < 1]:
        raise UserError(
            Problem(f"`{name}` is {given[name]!r}, not a positive whole number") for name in wrong
        )
    exchanging = 1
    if "a2a" in kind.options:
        exchanging = given.get("exchange_parallel_size", given.get("context_parallel_size", 1))
    known = known_sizes({**given, "exchange_parallel_size": exchanging})
    problems = [
        Problem(f"the table of kept bytes has no layers with {what}", where)
        for where, what in _others(kind, {**known, **given})
    ]
    problems += [
        Problem(f"the table of kept bytes has no option `{option}`", hint=nearest(option, OPTIONS))
        for option in kind.options
        if option not in OPTIONS
    ]
    modules = {**_half(kind, "attention", known, problems), **_half(kind, "mlp", known, problems)}
    needed = {name for terms in modules.values() for term in terms for name in names(term)}
    if "tokens" in needed:
        needed = needed - {"tokens"} | _BATCH
    for name in sorted(needed - known.keys()):
        problems.append(Problem(f"`{name}` is missing: the layer keeps tensors of that size"))
    if problems:
        raise UserError(problems)
    return tuple(
        Part(module, sum(amount(term, count, known) for term, count in terms.items()), terms)
        for module, terms in modules.items()
    )


def names(term: str) -> list[str]:
    """Return the sizes and degrees in a term."""
    return term.replace("/", "*").split("*")


def amount(term: str, count: int, sizes: Mapping[str, int]) -> int:
    """Return `count` times a term, rounded up to a whole number."""
    above, *below = term.split("/")
    whole = count * math.prod(sizes[name] for name in above.split("*"))
    return -(-whole // math.prod(sizes[name] for name in below))


@functools.cache
def layer_table() -> Any:
    """Return the table.

    `layers`: by implementation, half, kind, dtype, parallelism, and options (joined by +; what is recomputed
    is one), numbers of entries of `modules`; `modules`: names of modules with what they keep, as terms.
    """
    return json.loads(TABLE.read_text(encoding="utf-8"))


def known_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes that terms name, as far as they follow from the engine's arguments (by dest)."""
    tp = sizes.get("tensor_model_parallel_size", 1)
    known = {"tensor_model_parallel_size": tp, "expert_tensor_parallel_size": tp, "layer": 1, **sizes}
    if sizes.keys() >= _BATCH:
        known["tokens"] = math.prod(sizes[name] for name in _BATCH) // sizes.get("context_parallel_size", 1)
    if groups := sizes.get("num_query_groups"):
        # Each rank has one group at least, and ranks that exchange heads share whole groups.
        own = max(groups // tp, 1)
        known["num_query_groups"] = tp * own
        known["exchanged_groups"] = tp * math.lcm(own, sizes.get("exchange_parallel_size", 1))
    return known


def _others(kind: LayerKind, sizes: Mapping[str, int]) -> Iterator[Violation]:
    """Yield what makes layers keep other tensors than those of the table, and the argument to blame."""
    tp, is_split = sizes["tensor_model_parallel_size"], sizes.get("context_parallel_size", 1) > 1
    if is_split and kind.implementation == "local":
        yield "context_parallel_size", "`context_parallel_size` above 1"
    if is_split and kind.implementation == "torch" and "attention_dropout" in kind.options:
        what = "`context_parallel_size` above 1 and `attention_dropout`: ranks then gather all keys"
        yield "context_parallel_size", what
    if kind.mlp != "dense" and tp % sizes["expert_tensor_parallel_size"]:
        what = "`expert_tensor_parallel_size` that does not divide `tensor_model_parallel_size`"
        yield "expert_tensor_parallel_size", f"{what}: ranks then gather tokens of other batches"
    groups, heads = sizes.get("num_query_groups"), sizes.get("num_attention_heads")
    options, is_local = {*kind.options}, kind.implementation == "local"
    is_odd = "unrotated" in options or options >= {"layer_norm", "qk_norm"}
    if is_odd and is_local and kind.attention == "gqa" and groups is not None and groups <= tp:
        what = "one group of keys per rank, `local` layers, and LayerNorm or positions that do not rotate"
        yield "num_query_groups", what
    if kind.attention not in ("mha", "gqa") or groups is None:
        return
    if kind.attention != (right := "mha" if groups == heads else "gqa"):
        what = f"{groups} groups for {heads} heads that are `{kind.attention}`: this is `{right}`"
        yield "num_query_groups", what


def _half(
    kind: LayerKind, half: str, sizes: Mapping[str, int], problems: list[Problem]
) -> Mapping[str, Terms]:
    """Return what the modules of one half keep; collects what the table does not have in `problems`."""
    layers = _entry(layer_table()["layers"], "implementation", kind.implementation, problems)
    name = getattr(kind, half)
    if name == "mla" and "q_lora_rank" not in sizes and DIRECT in layers[half]:
        name = DIRECT
    of_kind = _entry(layers[half], half, name, problems)
    found = _entry(of_kind, "dtype", "bfloat16" if kind.dtype == "float16" else kind.dtype, problems)
    found = _entry(found, "parallelism", _parallelism(kind, half, sizes), problems)
    # A model's list may name modules that only its other layers have, and its options be theirs.
    known = {option for by_kind in layers.values() for one in by_kind.values() for option in _options(one)}
    modules = {option.removeprefix(AGAIN) for option in known if option.startswith(AGAIN)}
    for module in sorted({*kind.recompute} - modules):
        what = f"the table of kept bytes has no recomputed module `{module}`"
        problems.append(Problem(what, "recompute_modules", nearest(module, modules)))
    if FULL in kind.recompute:
        if len(kind.recompute) > 1:
            what = f"no combination of recomputed modules `{'+'.join(sorted(kind.recompute))}`"
            problems.append(Problem(f"the table of kept bytes has {what}", "recompute_modules"))
        return _with_options(found, {f"{AGAIN}{FULL}"})
    wanted = {*kind.options, *(f"{AGAIN}{module}" for module in kind.recompute)}
    missing = {option for option in {*kind.options} & OPTIONS.keys() if option not in known}
    missing |= wanted.intersection(_options(of_kind)) - {one for key in found for one in key.split("+")}
    for option in sorted(missing):
        what = f"no `{kind.implementation}` layers in {kind.dtype} with `{option}`"
        where = "recompute_granularity" if option.startswith(AGAIN) else _ARGUMENTS.get(option, "")
        problems.append(Problem(f"the table of kept bytes has {what}", where))
    return _with_options(found, wanted)


def _with_options(by_options: Mapping[str, list[int]], options: set[str]) -> Mapping[str, Terms]:
    """Return what the modules of one half keep with some options: the sum of all that applies."""
    modules = layer_table()["modules"]
    found: dict[str, dict[str, int]] = {}
    for needed, numbers in by_options.items():
        if options.issuperset(needed.split("+") if needed else ()):
            for number in numbers:
                ((module, terms),) = modules[number].items()
                own = found.setdefault(module, {})
                for term, count in terms.items():
                    own[term] = own.get(term, 0) + count
    kept = {module: {term: own[term] for term in own if own[term]} for module, own in sorted(found.items())}
    return {module: terms for module, terms in kept.items() if terms}


def _parallelism(kind: LayerKind, half: str, sizes: Mapping[str, int]) -> str:
    if sizes["tensor_model_parallel_size"] == 1:
        return "one_rank"
    if not kind.sequence_parallel:
        return "tensor"
    cut = half == "mlp" and kind.mlp != "dense" and sizes["expert_tensor_parallel_size"] > 1
    return "sequence_experts_cut" if cut else "sequence"


def _entry(found: Mapping[str, Any], what: str, name: str, problems: list[Problem]) -> Any:
    """Return an entry of the table; if there is none, collect that and go on with another."""
    if name not in found:
        message = f"the table of kept bytes has no {what} `{name}`"
        problems.append(Problem(message, _ARGUMENTS.get(what, ""), nearest(name, found)))
    return found[name] if name in found else next(iter(found.values()))


def _options(by_dtype: Mapping[str, Any]) -> set[str]:
    """Return all options that the table knows for one kind of half."""
    tables = [table for by_parallelism in by_dtype.values() for table in by_parallelism.values()]
    return {option for table in tables for options in table for option in options.split("+")}
