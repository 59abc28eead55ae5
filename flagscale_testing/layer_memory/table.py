"""The planner's table of kept bytes: which layers are measured for it, and the table made from them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flagscale.planner.layer_memory import FULL, NOTHING, LayerKind
from flagscale_testing.layer_memory.cases import Case, Kept, Sizes
from flagscale_testing.layer_memory.formula import formula
from flagscale_testing.layer_memory.terms import fitted, possible_terms

HALVES = {"attention": ("mha", "gqa", "mla"), "mlp": ("dense", "moe", "moe_shared")}
DTYPES = ("bfloat16", "float32")
SAMPLES = 5
"""How many layers of random sizes show on which terms the bytes depend."""

# What can be recomputed in each half; norms are recomputed in both.
_RECOMPUTE: Mapping[str, tuple[str, ...]] = {
    "mha": ("core_attn",),
    "gqa": ("core_attn",),
    "mla": ("core_attn", "mla_up_proj"),
    "dense": ("mlp",),
    "moe": ("moe",),
    "moe_shared": ("moe", "shared_experts"),
}
_NORMS = "layernorm"


@dataclass(frozen=True)
class Entry:
    """Layers of several sizes that keep the same kinds of tensors: two entries of the table, one per half."""

    implementation: str
    kinds: tuple[str, str]
    dtype: str
    parallelism: str
    recompute: tuple[tuple[str, ...], tuple[str, ...]]
    cases: tuple[Case, ...]


def kind_of(case: Case) -> LayerKind:
    """Return a case's layer as the planner names it."""
    attention = "mla" if "kv_lora_rank" in case.sizes else "gqa"
    if case.sizes.get("num_query_groups") == case.sizes["num_attention_heads"]:
        attention = "mha"
    mlp = "moe" if "num_experts" in case.sizes else "dense"
    if "moe_shared_expert_intermediate_size" in case.sizes:
        mlp = "moe_shared"
    return LayerKind(case.implementation, attention, mlp, case.sequence_parallel, case.dtype, case.recompute)


def entries() -> Iterator[Entry]:
    """Yield everything that the table needs to have measured."""
    for implementation, kinds, dtype in itertools.product(("torch", "local"), _PAIRS, DTYPES):
        for parallelism in _parallelisms(implementation, kinds):
            for recompute in _recomputed(kinds, dtype):
                yield entry(implementation, kinds, dtype, parallelism, recompute)


_PAIRS = (
    *(("mha", "dense"), ("gqa", "dense"), ("mla", "dense")),
    *(("gqa", "moe"), ("gqa", "moe_shared"), ("mla", "moe_shared")),
)
"""Layers in which each kind of half occurs, in each kind of job."""


def entry(
    implementation: str,
    kinds: tuple[str, str],
    dtype: str,
    parallelism: str,
    recompute: tuple[tuple[str, ...], tuple[str, ...]],
) -> Entry:
    """Return an entry with layers of several sizes."""
    draw = random.Random(0)
    both = (FULL,) if (FULL,) in recompute else tuple(dict.fromkeys(itertools.chain(*recompute)))
    in_sequence = parallelism.startswith("sequence")
    cases = tuple(
        Case(_sizes(kinds, parallelism, draw), implementation, in_sequence, dtype, both)
        for _ in range(SAMPLES)
    )
    return Entry(implementation, kinds, dtype, parallelism, recompute, cases)


def fit(found: Entry, rows: Sequence[Sequence[Kept]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what each half keeps in an entry's layers, as terms per module, from what was measured."""
    sizes = [case.sizes for case in found.cases]
    halves: list[dict[str, Any]] = []
    for half, kind in zip(HALVES, found.kinds, strict=True):
        own = [[row for row in kept if half_of(row.module) == half] for kept in rows]
        try:
            halves.append(fitted(own, sizes, possible_terms(kind, found.parallelism)))
        except ArithmeticError as error:
            error.add_note(f"{half} of {replace(found, cases=())}")
            raise
    return halves[0], halves[1]


def half_of(module: str) -> str:
    """Return the half of the layer to which a module belongs."""
    return "mlp" if module.startswith(("pre_mlp", "mlp")) else "attention"


def table(measure: Callable[[Sequence[Case]], Sequence[Sequence[Kept]]]) -> dict[str, Any]:
    """Return the whole table; `measure` returns what each of many layers keeps."""
    todo = list(entries())
    measured = iter(measure([case for one in todo for case in one.cases]))
    layers: dict[str, Any] = {}
    for one in todo:
        rows = list(itertools.islice(measured, len(one.cases)))
        for half, kind, which, modules in zip(HALVES, one.kinds, one.recompute, fit(one, rows), strict=True):
            parallelism = (
                one.parallelism if kind.startswith("moe") else one.parallelism.removesuffix("_experts_cut")
            )
            place = _place(layers, one.implementation, half, kind, one.dtype, parallelism)
            if place.setdefault("+".join(sorted(which)) or NOTHING, modules) != modules:
                raise ArithmeticError(f"{half} {kind} keeps other tensors beside {one.kinds}: {one}")
    for half, kinds in HALVES.items():
        for kind, dtype in itertools.product(kinds, DTYPES):
            for parallelism in ("one_rank", "tensor", "sequence"):
                if parallelism != "tensor" or not kind.startswith("moe"):
                    place = _place(layers, "transformer_engine", half, kind, dtype, parallelism)
                    place.update(formula(kind, parallelism, dtype))
    return layers


def as_json(layers: Mapping[str, Any]) -> str:
    """Return the table as JSON with one line per kind of recomputation."""
    about = "generated: python -m benchmarks.layer_memory --write"
    return "\n".join([f'{{"about": {json.dumps(about)},', f'"layers": {_lines(layers, 5)}}}', ""])


def _lines(value: Mapping[str, Any], levels: int) -> str:
    if not levels:
        return json.dumps(value, sort_keys=True)
    inner = ",\n".join(f"{json.dumps(name)}: {_lines(one, levels - 1)}" for name, one in value.items())
    return f"{{\n{inner}}}"


def _place(layers: dict[str, Any], *path: str) -> dict[str, Any]:
    for name in path:
        layers = layers.setdefault(name, {})
    return layers


def _parallelisms(implementation: str, kinds: tuple[str, str]) -> Sequence[str]:
    if implementation == "local":
        if "mla" in kinds:  # the engine's own attention refuses it
            return ()
        # There is no sequence parallelism, which experts on several ranks need.
        return ("one_rank", "tensor") if kinds[1] == "dense" else ("one_rank",)
    if kinds == ("mla", "dense"):  # the rest is measured with experts, which need sequence parallelism
        return ("tensor",)
    if kinds[1] == "dense":
        return ("one_rank", "tensor", "sequence")
    if kinds == ("gqa", "moe_shared"):  # the rest is measured with latent attention
        return ("sequence_experts_cut",)
    return ("one_rank", "sequence") if kinds[0] == "mla" else ("one_rank", "sequence", "sequence_experts_cut")


def _recomputed(kinds: tuple[str, str], dtype: str) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield what is recomputed in the two halves, until every combination of each half occurred.

    Who trains in float32 does not look for memory: then, it is all or nothing.
    """
    yield (FULL,), (FULL,)
    if dtype == "float32":
        yield (), ()
        return
    first, second = (_subsets(_RECOMPUTE[kind]) for kind in kinds)
    for norms in ((), (_NORMS,)):
        for number in range(max(len(first), len(second))):
            yield (
                (*norms, *first[number % len(first)]),
                (*norms, *second[number % len(second)]),
            )


def _subsets(modules: Sequence[str]) -> list[tuple[str, ...]]:
    sizes = range(len(modules) + 1)
    return [subset for size in sizes for subset in itertools.combinations(modules, size)]


def _sizes(kinds: tuple[str, str], parallelism: str, draw: random.Random) -> Sizes:
    """Return random sizes of a layer and a batch, which the degrees divide."""
    tp = 1 if parallelism == "one_rank" else draw.choice((2, 4))
    experts = draw.randint(3, 6)
    groups = tp * draw.randint(1, 3)
    sizes = {
        "tensor_model_parallel_size": tp,
        "expert_tensor_parallel_size": tp if parallelism == "sequence_experts_cut" else 1,
        "seq_length": 8 * draw.randint(1, 500),
        "micro_batch_size": draw.randint(1, 9),
        "hidden_size": 8 * draw.randint(1, 900),
        "num_attention_heads": groups if kinds[0] == "mha" else groups * draw.randint(2, 3),
    }
    if kinds[0] != "mla":
        sizes |= {"num_query_groups": groups, "kv_channels": 8 * draw.randint(1, 50)}
    else:
        for name in ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim"):
            sizes[name] = 8 * draw.randint(1, 200)
    if kinds[1] == "dense":
        return sizes | {"ffn_hidden_size": 8 * draw.randint(1, 900)}
    sizes |= {"num_experts": experts, "moe_router_topk": draw.randint(2, experts - 1)}
    sizes["moe_ffn_hidden_size"] = 8 * draw.randint(1, 900)
    if kinds[1] == "moe_shared":
        sizes["moe_shared_expert_intermediate_size"] = 8 * draw.randint(1, 900)
    return sizes
