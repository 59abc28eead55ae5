"""The planner's table of kept bytes: which layers are measured for it, and the table made from them."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flagscale.planner.memory.layer_memory import AGAIN, DIRECT, FULL, LayerKind, Terms
from flagscale_testing.layer_memory.cases import Case, Kept, Sizes
from flagscale_testing.layer_memory.terms import fitted, possible_terms

HALVES = ("attention", "mlp")
DTYPES = ("bfloat16", "float32")
SAMPLES = 5
"""How many layers of random sizes show on which terms the bytes depend."""

Options = tuple[str, ...]


def _sets(*options: str, again: Sequence[str]) -> tuple[Options, ...]:
    """Return these sets of options, the same with modules of `again` recomputed, and those modules alone."""
    plain = [tuple(sorted(one.split())) for one in options]
    modules = [f"{AGAIN}{module}" for module in again]
    alone = [subset for size in (1, 2) for subset in itertools.combinations(sorted(modules), size)]
    return (*plain, *alone, *((*one, *subset) for one in plain for subset in alone))


# What changes a half, alone or together; all other combinations are sums of these. What is recomputed is such
# an option. In float32, it is all or nothing: who trains in it does not look for memory.
_BOTH: tuple[Options, ...] = (
    *(("layer_norm",), ("dropout",), ("on_cpu",), ("recompute layernorm",)),
    *(("layer_norm", "on_cpu"), ("dropout", "on_cpu"), ("layer_norm", "recompute layernorm")),
    ("layer_norm", "on_cpu", "recompute layernorm"),
)
_ATTENTION = ("attention_dropout", "attention_dropout on_cpu", "a2a")
_LATENT = _sets(*_ATTENTION, again=("core_attn", "mla_up_proj"))
_PLAIN = _sets(
    *(*_ATTENTION, "qk_norm", "layer_norm qk_norm", "layer_norm on_cpu qk_norm"),
    *("unrotated", "qk_norm unrotated", "layer_norm qk_norm unrotated"),
    again=("core_attn",),
)
_DENSE = _sets("ungated", again=("mlp",))
_LOSSES = ("aux_loss", "seq_aux_loss", "global_aux_loss")
_MOE = (
    *("ungated", "grouped", "grouped ungated", "sigmoid", "expert_bias sigmoid", "router_fp32"),
    *(*_LOSSES, *(f"{loss} sigmoid" for loss in _LOSSES)),
)
_OPTIONS: Mapping[str, tuple[Options, ...]] = {
    "mha": _PLAIN,
    "gqa": _PLAIN,
    "mla": _LATENT,
    DIRECT: _LATENT,
    "dense": _DENSE,
    "moe": _sets(*_MOE, again=("moe",)),
    "moe_shared": _sets(*_MOE, "shared_gate", again=("moe", "shared_experts")),
}


@dataclass(frozen=True)
class Entry:
    """Layers of several sizes that keep the same kinds of tensors: two entries of the table, one per half."""

    implementation: str
    kinds: tuple[str, str]
    dtype: str
    parallelism: str
    options: Options
    cases: tuple[Case, ...]


def kind_of(case: Case) -> LayerKind:
    """Return a case's layer as the planner names it."""
    attention = "mla" if "kv_lora_rank" in case.sizes else "gqa"
    if case.sizes.get("num_query_groups") == case.sizes["num_attention_heads"]:
        attention = "mha"
    mlp = "moe" if "num_experts" in case.sizes else "dense"
    if "moe_shared_expert_intermediate_size" in case.sizes:
        mlp = "moe_shared"
    return LayerKind(
        case.implementation,
        attention,
        mlp,
        case.sequence_parallel,
        case.dtype,
        case.recompute,
        case.options,
    )


def entries() -> Iterator[Entry]:
    """Yield everything that the table needs to have measured."""
    for implementation, kinds, dtype in itertools.product(("torch", "local"), _PAIRS, DTYPES):
        for parallelism in _parallelisms(implementation, kinds):
            for options in _option_sets(implementation, kinds, dtype, parallelism):
                yield entry(implementation, kinds, dtype, parallelism, options)


_PAIRS = (
    *(("mha", "dense"), ("gqa", "dense"), ("mla", "dense"), (DIRECT, "dense")),
    *(("gqa", "moe"), ("gqa", "moe_shared")),
)
"""Layers in which each kind of half occurs, in each kind of job."""


def _option_sets(implementation: str, kinds: tuple[str, str], dtype: str, parallelism: str) -> list[Options]:
    """Return sets of options with which every set of either half occurs without others in that half."""
    attention, mlp = kinds
    # Beside experts, attention is what it is beside a dense MLP.
    own = [_OPTIONS[attention] if mlp == "dense" else (), _OPTIONS[mlp]]
    common = {option for options in _BOTH for option in options}
    found: list[Options] = [(), *_BOTH]
    for first, second in itertools.zip_longest(*own, fillvalue=()):
        # A set with an option that both halves have would change the other half's set.
        alone = common.intersection((*first, *second))
        found += [first, second] if alone else [tuple(sorted({*first, *second}))]
    no = {"a2a"} if implementation == "local" else set()
    if dtype == "float32":
        # Grouped products of meta tensors need bfloat16.
        no |= {one for options in found for one in options if one.startswith(AGAIN)} | {"grouped"}
    if parallelism == "sequence_experts_cut":
        # Ranks that share experts exchange real numbers of tokens, which a rank without others has not.
        no.add("on_cpu")
    sets = dict.fromkeys(tuple(one for one in options if one not in no) for options in found)
    return [*sets, (f"{AGAIN}{FULL}",)]


def entry(
    implementation: str, kinds: tuple[str, str], dtype: str, parallelism: str, options: Options = ()
) -> Entry:
    """Return an entry with layers of several sizes."""
    draw = random.Random(0)
    recompute = tuple(one.removeprefix(AGAIN) for one in options if one.startswith(AGAIN))
    others = tuple(one for one in options if not one.startswith(AGAIN))
    sizes = [_sizes(kinds, parallelism, "a2a" in options, draw) for _ in range(SAMPLES)]
    in_sequence = parallelism.startswith("sequence")
    cases = tuple(Case(one, implementation, in_sequence, dtype, recompute, others) for one in sizes)
    return Entry(implementation, kinds, dtype, parallelism, options, cases)


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
        for half, kind, modules in zip(HALVES, one.kinds, fit(one, rows), strict=True):
            parallelism = (
                one.parallelism if kind.startswith("moe") else one.parallelism.removesuffix("_experts_cut")
            )
            place = _place(layers, one.implementation, half, kind, one.dtype, parallelism)
            known = {option for options in (*_BOTH, *_OPTIONS[kind]) for option in options}
            own = "+".join(sorted(known.intersection(one.options))) or (
                f"{AGAIN}{FULL}" if f"{AGAIN}{FULL}" in one.options else ""
            )
            if place.setdefault(own, modules) != modules:
                raise ArithmeticError(f"{half} {kind} keeps other tensors beside {one.kinds}: {one}")
    return _numbered(layers)


def _numbered(layers: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table with each module once, and by options what they change."""
    modules: list[dict[str, Terms]] = []

    def numbers(value: Any, levels: int) -> Any:
        if levels:
            return {name: numbers(one, levels - 1) for name, one in value.items()}
        found = {}
        for options, changes in _changes(value).items():
            entries = [{module: terms} for module, terms in changes.items()]
            modules.extend(one for one in entries if one not in modules)
            found[options] = [modules.index(one) for one in entries]
        return found

    return {"layers": numbers(layers, 5), "modules": modules}


def _changes(by_options: Mapping[str, Mapping[str, Terms]]) -> dict[str, dict[str, Terms]]:
    """Return, for sets of options, what is kept besides what all smaller sets in them keep."""
    found: dict[str, dict[str, Terms]] = {}
    for options in sorted(by_options, key=lambda name: (len(name.split("+")), name)):
        names = {*options.split("+")} - {""}
        rest = {
            (module, term): n for module, terms in by_options[options].items() for term, n in terms.items()
        }
        for smaller, changes in found.items():
            if names.issuperset({*smaller.split("+")} - {""}):
                for module, terms in changes.items():
                    for term, count in terms.items():
                        rest[module, term] = rest.get((module, term), 0) - count
        own: dict[str, dict[str, int]] = {}
        for (module, term), count in sorted(rest.items()):
            if count:
                own.setdefault(module, {})[term] = count
        # An option that changes nothing is listed nevertheless: others were not measured.
        if own or len(names) < 2 or not names.issubset("+".join(found).split("+")):
            found[options] = dict(own)
    return found


def as_json(table: Mapping[str, Any]) -> str:
    """Return the table as JSON with one line per kind of parallelism, and one per module."""
    about = "generated: python -m benchmarks.layer_memory --write"
    modules = ",\n".join(json.dumps(one, sort_keys=True) for one in table["modules"])
    layers = _lines(table["layers"], 5)
    return f'{{"about": {json.dumps(about)},\n"layers": {layers},\n"modules": [\n{modules}]}}\n'


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
        if kinds[0] in ("mla", DIRECT):  # the engine's own attention refuses it
            return ()
        # There is no sequence parallelism, which experts on several ranks need.
        return ("one_rank", "tensor") if kinds[1] == "dense" else ("one_rank",)
    if kinds[1] == "dense":
        return ("one_rank", "tensor", "sequence")
    return ("one_rank", "sequence", "sequence_experts_cut")


def _sizes(kinds: tuple[str, str], parallelism: str, exchanges: bool, draw: random.Random) -> Sizes:
    """Return random sizes of a layer and a batch, which the degrees divide."""
    tp = 1 if parallelism == "one_rank" else draw.choice((2, 4))
    cp = draw.choice((2, 4)) if exchanges else 1
    experts = draw.randint(3, 9)
    groups = tp * draw.randint(2, 6)
    sizes = {
        "tensor_model_parallel_size": tp,
        "expert_tensor_parallel_size": tp if parallelism == "sequence_experts_cut" else 1,
        "context_parallel_size": cp,
        "exchange_parallel_size": cp,
        "seq_length": 8 * cp * draw.randint(1, 10),
        "micro_batch_size": draw.randint(1, 8),
        "hidden_size": 8 * draw.randint(1, 60),
        "num_attention_heads": cp
        * groups
        * (draw.randint(1, 6) if kinds[0] == "mha" else draw.randint(2, 5)),
    }
    if kinds[0] in ("mha", "gqa"):
        groups = sizes["num_attention_heads"] if kinds[0] == "mha" else groups
        sizes |= {"num_query_groups": groups, "kv_channels": 8 * draw.randint(1, 20)}
    else:
        for name in ("q_lora_rank", "kv_lora_rank", "qk_head_dim", "qk_pos_emb_head_dim", "v_head_dim"):
            sizes[name] = 8 * draw.randint(1, 40)
    if kinds[0] == DIRECT:
        del sizes["q_lora_rank"]
    if kinds[1] == "dense":
        return sizes | {"ffn_hidden_size": 8 * draw.randint(1, 60)}
    sizes |= {"num_experts": experts, "moe_router_topk": draw.randint(2, experts - 1)}
    sizes["moe_ffn_hidden_size"] = 32 * draw.randint(1, 20)
    if kinds[1] == "moe_shared":
        sizes["moe_shared_expert_intermediate_size"] = 8 * draw.randint(1, 60)
    return sizes
