"""Express what layers keep as sums of named sizes, solved exactly from layers of several sizes.

The bytes of a module are a sum of terms with whole coefficients. More layers are measured than there are
terms that may occur, and the linear equations are solved with fractions. The surplus layers must then be
reproduced to the byte: a tensor whose size is none of the terms is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from flagscale.planner.layer_memory import Terms, amount, known_sizes
from flagscale_testing.layer_memory.cases import Kept, Sizes

_TP = "/tensor_model_parallel_size"
_CUT = "*expert_tensor_parallel_size"
# Per token, on every rank or split over the tensor parallel ranks.
_ROWS: Mapping[str, tuple[str, ...]] = {
    "gqa": ("hidden_size",),
    "mla": ("hidden_size", "q_lora_rank", "kv_lora_rank", "qk_pos_emb_head_dim"),
    "dense": ("hidden_size",),
    "moe": ("hidden_size", "num_experts", "moe_router_topk"),
}
# Always split over the ranks.
_SPLIT: Mapping[str, tuple[str, ...]] = {
    "gqa": (
        "tokens*num_attention_heads*kv_channels",
        "tokens*num_query_groups*kv_channels",
        "tokens*num_attention_heads",
        "tokens*num_attention_heads*seq_length",
    ),
    "mla": (
        "tokens*num_attention_heads*qk_head_dim",
        "tokens*num_attention_heads*qk_pos_emb_head_dim",
        "tokens*num_attention_heads*v_head_dim",
        "tokens*num_attention_heads",
    ),
    "dense": ("tokens*ffn_hidden_size",),
    "moe": (),
}
# Split, but by whole experts: with experts that are cut, a rank has the tokens of all ranks that share them.
_ROUTED = ("tokens*moe_router_topk*hidden_size", "tokens*moe_router_topk")
# Per position of the sequence.
_TABLES: Mapping[str, tuple[str, ...]] = {
    "gqa": ("seq_length*kv_channels",),
    "mla": ("seq_length*qk_pos_emb_head_dim",),
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
    tables = list(_TABLES.get(base, ()))
    if parallelism == "one_rank":
        return [*rows, *split, *tables]
    return [*rows, *(f"{term}{_TP}" for term in (*rows, *split)), *tables]


def by_module(rows: Iterable[Kept]) -> dict[str, int]:
    """Return the bytes per module; all experts are one module."""
    sums: dict[str, int] = {}
    for row in rows:
        module = module_name(row.module)
        sums[module] = sums.get(module, 0) + row.nbytes
    return sums


def module_name(path: str) -> str:
    """Return a module's path, the same for all experts."""
    return re.sub(r"\.\d+\b", ".*", path)


def fitted(
    measured: Sequence[Mapping[str, int]], sizes: Sequence[Sizes], terms: Sequence[str]
) -> dict[str, Terms]:
    """Return the bytes per unit of each term, for each module that was measured in layers of these sizes.

    Raises `ArithmeticError` if terms cannot be told apart by the sizes, or do not explain a module exactly.
    """
    modules = sorted({module for bytes_of in measured for module in bytes_of})
    table = [
        [Fraction(amount(term, 1, known_sizes(one))) for term in terms]
        + [Fraction(bytes_of.get(module, 0)) for module in modules]
        for bytes_of, one in zip(measured, sizes, strict=True)
    ]
    rest = _eliminate(table, len(terms))
    found: dict[str, Terms] = {}
    for column, module in enumerate(modules, start=len(terms)):
        if any(row[column] for row in rest):
            raise ArithmeticError(f"{module} keeps a tensor whose size is none of: {', '.join(terms)}")
        counts = {term: row[column] for term, row in zip(terms, table, strict=False) if row[column]}
        if any(count.denominator > 1 or count < 0 for count in counts.values()):
            raise ArithmeticError(f"{module} keeps parts of bytes: {counts}")
        found[module] = {term: int(count) for term, count in counts.items()}
    return found


def _eliminate(table: list[list[Fraction]], unknowns: int) -> list[list[Fraction]]:
    """Solve the equations in place (row `i` then gives unknown `i`); return the rows that are left over."""
    for column in range(unknowns):
        pivot = next((row for row in range(column, len(table)) if table[row][column]), None)
        if pivot is None:
            raise ArithmeticError("the sizes of the measured layers do not tell all terms apart")
        table[column], table[pivot] = table[pivot], table[column]
        first = table[column] = [value / table[column][column] for value in table[column]]
        for row, values in enumerate(table):
            if row != column and (factor := values[column]):
                table[row] = [value - factor * own for value, own in zip(values, first, strict=True)]
    return table[unknowns:]
