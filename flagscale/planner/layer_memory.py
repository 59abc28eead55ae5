"""The bytes that a transformer layer keeps for its backward pass, from a table of measured layers.

`layer_memory.json` is generated from the layers themselves (`python -m benchmarks.layer_memory --write`), for
TransformerEngine from a formula. For each kind of attention and of MLP, the two halves of a layer, it lists
modules with the bytes that they keep as a sum of terms. A term is a product of sizes, divided by degrees:
`tokens*hidden_size/tensor_model_parallel_size`. The names are those of the engine's arguments; `tokens` is
`seq_length` times `micro_batch_size`.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flagscale.errors import Problem, UserError, nearest
from flagscale.frozen import dataclass

TABLE = Path(__file__).with_suffix(".json")
NOTHING, FULL = "none", "full"

_BATCH = {"seq_length", "micro_batch_size"}

Terms = Mapping[str, int]
"""Bytes per unit of each term."""


@dataclass(frozen=True)
class LayerKind:
    """What decides which tensors a layer keeps; sizes and degrees decide how large they are."""

    implementation: str
    """torch, local or transformer_engine."""
    attention: str
    """mha (a group for each head), gqa (fewer groups than heads) or mla."""
    mlp: str
    """dense, moe or moe_shared (with a shared expert)."""
    sequence_parallel: bool = False
    dtype: str = "bfloat16"
    """The precision of activations: bfloat16, float16 or float32."""
    recompute: tuple[str, ...] = ()
    """The `recompute_modules` of selective recomputation, or `(FULL,)`."""


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
    are absent are 1, and `expert_tensor_parallel_size` is that of tensor parallelism. Experts are assumed to
    be balanced. Raises `UserError` with every kind that the table does not have, and every size that is
    missing or not a positive whole number.
    """
    given = {name: size for name, size in sizes.items() if size is not None}
    if wrong := [name for name, size in given.items() if type(size) is not int or size < 1]:
        raise UserError(
            Problem(f"`{name}` is {given[name]!r}, not a positive whole number") for name in wrong
        )
    known = known_sizes(given)
    problems = [
        Problem(f"the table of kept bytes has no layers with {what}") for what in _others(kind, known)
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
    """Return the table: implementation, half, kind, dtype, parallelism, recomputed modules, module, term."""
    return json.loads(TABLE.read_text(encoding="utf-8"))["layers"]


def known_sizes(sizes: Mapping[str, int]) -> dict[str, int]:
    """Return the sizes that terms name, as far as they follow from the engine's arguments (by dest)."""
    tp = sizes.get("tensor_model_parallel_size", 1)
    known = {"tensor_model_parallel_size": tp, "expert_tensor_parallel_size": tp, **sizes}
    if sizes.keys() >= _BATCH:
        known["tokens"] = math.prod(sizes[name] for name in _BATCH)
    return known


def _others(kind: LayerKind, sizes: Mapping[str, int]) -> Iterator[str]:
    """Yield what makes layers keep other tensors than those of the table."""
    if sizes.get("context_parallel_size", 1) > 1:
        yield "`context_parallel_size` above 1"
    if kind.mlp != "dense" and sizes["tensor_model_parallel_size"] % sizes["expert_tensor_parallel_size"]:
        what = "`expert_tensor_parallel_size` that does not divide `tensor_model_parallel_size`"
        yield f"{what}: ranks then gather tokens of other batches"
    groups, heads = sizes.get("num_query_groups"), sizes.get("num_attention_heads")
    if kind.attention not in ("mha", "gqa") or groups is None:
        return
    if groups < sizes["tensor_model_parallel_size"]:
        yield "`tensor_model_parallel_size` above `num_query_groups`: ranks then gather all keys"
    if kind.attention != (right := "mha" if groups == heads else "gqa"):
        yield f"{groups} groups for {heads} heads that are `{kind.attention}`: this is `{right}`"


def _half(
    kind: LayerKind, half: str, sizes: Mapping[str, int], problems: list[Problem]
) -> Mapping[str, Terms]:
    """Return the modules of one half of a layer; collect what the table does not have."""
    layers = _entry(layer_table(), "implementation", kind.implementation, problems)
    found = _entry(layers[half], half, getattr(kind, half), problems)
    found = _entry(found, "dtype", "bfloat16" if kind.dtype == "float16" else kind.dtype, problems)
    found = _entry(found, "parallelism", _parallelism(kind, half, sizes), problems)
    # A model's list may name modules that only its other layers have.
    known = {module for entry in layers.values() for one in entry.values() for module in _recomputed(one)}
    for module in sorted({*kind.recompute} - known):
        what = f"the table of kept bytes has no recomputed module `{module}`"
        problems.append(Problem(what, hint=nearest(module, known - {NOTHING})))
    own = {module for combination in found for module in combination.split("+")}
    chosen = "+".join(sorted(own.intersection(kind.recompute))) or NOTHING
    modules: Mapping[str, Terms] = _entry(found, "combination of recomputed modules", chosen, problems)
    return modules


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
        problems.append(Problem(f"the table of kept bytes has no {what} `{name}`", hint=nearest(name, found)))
    return found[name] if name in found else next(iter(found.values()))


def _recomputed(by_dtype: Mapping[str, Any]) -> set[str]:
    """Return all modules whose recomputation the table knows for one kind of half."""
    tables = [table for by_parallelism in by_dtype.values() for table in by_parallelism.values()]
    return {module for table in tables for combination in table for module in combination.split("+")}
