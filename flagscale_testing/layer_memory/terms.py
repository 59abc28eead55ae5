"""Express what layers keep as sums of named sizes, found from layers of several random sizes.

The bytes of a tensor are a sum of few terms with whole coefficients. The smallest sum is taken whose
coefficients, solved from as many layers as it has terms, give the bytes of all other layers too. A tensor
whose size is none of the possible terms is an error.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Iterator, Mapping, Sequence

from flagscale.planner.memory.layer_memory import Terms, amount, known_sizes
from flagscale_testing.layer_memory.cases import Kept, Sizes

_TP = "/tensor_model_parallel_size"
_CUT = "*expert_tensor_parallel_size"
# Per token, on every rank or split over the tensor parallel ranks.
_ROWS: Mapping[str, tuple[str, ...]] = {
    "mha": ("hidden_size",),
    "gqa": ("hidden_size",),
    "mla": ("hidden_size", "q_lora_rank", "kv_lora_rank", "qk_pos_emb_head_dim"),
    "mla_without_q_lora": ("hidden_size", "kv_lora_rank", "qk_pos_emb_head_dim"),
    "dense": ("hidden_size",),
    "moe": ("hidden_size", "num_experts", "moe_router_topk"),
}
# Always split over the ranks.
_LATENT = (
    "tokens*num_attention_heads*qk_head_dim",
    "tokens*num_attention_heads*qk_pos_emb_head_dim",
    "tokens*num_attention_heads*v_head_dim",
    "tokens*num_attention_heads",
    "tokens*num_attention_heads*seq_length",
)
_SPLIT: Mapping[str, tuple[str, ...]] = {
    "mha": (
        "tokens*num_attention_heads*kv_channels",
        "tokens*num_attention_heads",
        "tokens*num_attention_heads*seq_length",
    ),
    "gqa": (
        "tokens*num_attention_heads*kv_channels",
        "tokens*num_query_groups*kv_channels",
        "tokens*exchanged_groups*kv_channels",
        "tokens*num_attention_heads",
        "tokens*num_query_groups",
        "tokens*num_attention_heads*seq_length",
    ),
    "mla": _LATENT,
    "mla_without_q_lora": _LATENT,
    "dense": ("tokens*ffn_hidden_size",),
    "moe": (),
}
# Split, but by whole experts: with experts that are cut, a rank has the tokens of all ranks that share them.
_ROUTED = ("tokens*moe_router_topk*hidden_size", "tokens*moe_router_topk")
# On every rank, whatever it holds of the sequence.
_OTHERS: Mapping[str, tuple[str, ...]] = {
    "mla": ("tokens*exchange_parallel_size*qk_pos_emb_head_dim",),
    "mla_without_q_lora": ("tokens*exchange_parallel_size*qk_pos_emb_head_dim",),
    "moe": ("num_experts", "micro_batch_size*num_experts", "layer"),
}


def possible_terms(kind: str, parallelism: str) -> list[str]:
    """Return the terms that may occur in one half of a layer."""
    base = kind.removesuffix("_shared")
    rows = ["tokens", *(f"tokens*{width}" for width in _ROWS[base])]
    split = list(_SPLIT[base])
    if base == "moe":
        cut = _CUT if parallelism == "sequence_experts_cut" else ""
        split += [f"{term}{cut}" for term in _ROUTED] + ["tokens*moe_router_topk*moe_ffn_hidden_size"]
        rows.remove("tokens*moe_router_topk")
        if cut:
            split.append("tokens*moe_router_topk")
    if kind == "moe_shared":
        split.append("tokens*moe_shared_expert_intermediate_size")
    others = list(_OTHERS.get(base, ()))
    if parallelism == "one_rank":
        return [*rows, *split, *others]
    return [*rows, *(f"{term}{_TP}" for term in (*rows, *split)), *others]


def module_name(path: str) -> str:
    """Return a module's path, the same for all experts."""
    return re.sub(r"\.\d+\b", ".*", path)


def fitted(
    measured: Sequence[Sequence[Kept]], sizes: Sequence[Sizes], terms: Sequence[str]
) -> dict[str, Terms]:
    """Return the bytes per unit of each term, for each module that keeps something in layers of these sizes.

    Raises `ArithmeticError` if terms do not explain the bytes of a module in all layers exactly.
    """
    known = [known_sizes({"exchange_parallel_size": 1, **one}) for one in sizes]
    values = {term: [amount(term, 1, one) for one in known] for term in terms}
    found: dict[str, dict[str, int]] = {}
    for (module, operation, dtype), nbytes in _by_tensor(measured):
        counts = _smallest_sum(nbytes, values)
        if counts is None:
            what = f"{module} keeps a tensor ({dtype}, by {operation})"
            raise ArithmeticError(f"{what} whose size is none of: {', '.join(terms)}")
        of_module = found.setdefault(module, {})
        for term, count in counts.items():
            of_module[term] = of_module.get(term, 0) + count
    return {module: found[module] for module in sorted(found)}


def _by_tensor(measured: Sequence[Sequence[Kept]]) -> Iterator[tuple[tuple[str, str, str], list[int]]]:
    """Yield the bytes of each tensor in each layer; of all tensors together if layers have more of them."""
    found: dict[tuple[str, str, str], list[list[int]]] = {}
    for layer, rows in enumerate(measured):
        for row in rows:
            key = module_name(row.module), row.operation, row.dtype
            found.setdefault(key, [[] for _ in measured])[layer].append(row.nbytes)
    for key, layers in found.items():
        if len({len(tensors) for tensors in layers}) == 1:
            yield from ((key, [*tensors]) for tensors in zip(*layers, strict=True))
        else:  # one for each expert
            yield key, [sum(tensors) for tensors in layers]


def _smallest_sum(nbytes: Sequence[int], values: Mapping[str, Sequence[int]]) -> dict[str, int] | None:
    """Return the coefficients of the fewest terms that give the bytes of all layers; None if none do.

    One layer at least is left to check the coefficients, which are whole and positive.
    """
    for size in range(1, len(nbytes)):
        for terms in itertools.combinations(values, size):
            layers = [
                (row, whole) for *row, whole in zip(*(values[term] for term in terms), nbytes, strict=True)
            ]
            counts = _solved(layers, size)
            if counts and all(sum(map(operator.mul, counts, row)) == whole for row, whole in layers):
                return dict(zip(terms, counts, strict=True))
    return None


def _solved(equations: Sequence[tuple[list[int], int]], unknowns: int) -> list[int]:
    """Return the positive whole solution of the first equations with a single one; empty if there is none."""
    for chosen in itertools.combinations(equations, unknowns):
        rows = [row for row, _ in chosen]
        if below := _determinant(rows):
            break
    else:
        return []
    counts = []
    for column in range(unknowns):
        replaced = [[*row[:column], whole, *row[column + 1 :]] for row, whole in chosen]
        count, rest = divmod(_determinant(replaced), below)
        if rest or count <= 0:
            return []
        counts.append(count)
    return counts


def _determinant(rows: list[list[int]]) -> int:
    if len(rows) == 1:
        return rows[0][0]
    first, *others = rows
    return sum(
        (-1) ** column * value * _determinant([[*row[:column], *row[column + 1 :]] for row in others])
        for column, value in enumerate(first)
    )
