"""How the layers of a homogeneous job are cut into the stages of a pipeline, and those into model chunks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from flagscale.errors import Violation

_CHUNKS = (
    "num_layers_per_virtual_pipeline_stage",
    "num_virtual_stages_per_pipeline_rank",
    "pipeline_model_parallel_layout",
)
"""Three ways to cut a stage into model chunks; at most one may be given."""

_ENDS = ("decoder_first_pipeline_num_layers", "decoder_last_pipeline_num_layers")
_COUNTED = ("account_for_embedding_in_pipeline_split", "account_for_loss_in_pipeline_split")


def model_chunks(values: Mapping[str, Any], pp: int) -> int:
    """Return the number of model chunks per stage."""
    layout = values.get("pipeline_model_parallel_layout")
    if isinstance(layout, str):
        return max(1, len(layout_parts(layout)) // pp)
    per_chunk = values.get("num_layers_per_virtual_pipeline_stage")
    if isinstance(per_chunk, int) and per_chunk > 0:
        return max(1, _counted_layers(values) // pp // per_chunk)
    return int(values.get("num_virtual_stages_per_pipeline_rank") or 1)


_MOST_TIMES = 1000
"""Limits what a slip of the finger in a layout can cost."""


def layout_parts(layout: str) -> list[str]:
    """Return the letters of each stage or chunk of a pipeline layout, with its multiplications written out.

    E: embedding, t: layer, m: prediction head, L: loss. Source: Megatron-core 0.19.2,
    `PipelineParallelLayerLayout.parse_str_to_list`.
    """
    text = layout.replace(",", "")
    for pattern in (r"\(([^)]+)\)\*(\d+)", r"(.)\*(\d+)"):
        text = re.sub(pattern, lambda found: found[1] * min(int(found[2]), _MOST_TIMES), text)
    return text.split("|")


def layout_violations(values: Mapping[str, Any]) -> Iterator[Violation]:
    """Yield the first rule of the engine that a pipeline layout breaks."""
    name, pp = "pipeline_model_parallel_layout", values["pipeline_model_parallel_size"]
    if not isinstance(values.get(name), str):
        return
    parts, layers, heads = layout_parts(values[name]), values.get("num_layers"), values.get("mtp_num_layers")
    whole, with_heads = "".join(parts), [number for number, part in enumerate(parts) if "m" in part]
    if others := sorted(set(whole) - set("EtmL")):
        yield name, f"{name} has an unknown letter {others[0]!r}: use E, t, m, L, and | between stages"
    elif len(parts) % pp:
        what = f"{name} has {len(parts)} parts, not a multiple of pipeline_model_parallel_size {pp}"
        yield name, what
    elif not re.fullmatch("E[tm]*L", whole):
        yield name, f"{name} must begin with its only E (embedding) and end with its only L (loss)"
    elif isinstance(layers, int) and whole.count("t") != layers:
        yield name, f"{name} has {whole.count('t')} layers (t), but num_layers is {layers}"
    elif whole.count("m") != (heads or 0):
        yield name, f"{name} has {whole.count('m')} prediction heads (m), but mtp_num_layers is {heads or 0}"
    elif "mt" in whole or len(with_heads) > 1 or any(number < len(parts) - pp for number in with_heads):
        yield (
            name,
            f"{name} must have all prediction heads (m) in one of the last {pp} parts, after all layers",
        )


def pipeline_violations(values: Mapping[str, Any], pp: int, vpp: int) -> Iterator[Violation]:
    """Yield why the layers cannot be cut into `pp` stages of `vpp` chunks."""
    given = [name for name in _CHUNKS if values.get(name) is not None]
    small = [name for name in given if isinstance(values[name], int) and values[name] < 1]
    for name in small:
        yield name, f"{name} must be a whole number of at least 1, not {values[name]}"
    uneven = [name for name in _ENDS if values.get(name) is not None]
    counted = [name for name in _COUNTED if values.get(name)]
    groups = [given, [*uneven[:1], *counted[:1]], [*given[:1], *uneven[:1]] if _CHUNKS[0] in given else []]
    if _CHUNKS[2] in given:
        groups.append([_CHUNKS[2], *uneven, *counted])
    clashes = [group for group in groups if len(group) > 1]
    for group in clashes:
        yield group[1], f"{' and '.join(group)} cannot be combined"
    if small or clashes:
        return
    if _CHUNKS[2] not in given:
        yield from (
            _uneven_violations(values, uneven, pp, vpp) if uneven else _even_violations(values, pp, vpp)
        )
    yield from layout_violations(values)
    if vpp > 1 and pp == 1:
        yield given[0], "an interleaved pipeline needs pipeline_model_parallel_size > 1"
    elif vpp > 1 and pp == 2 and not values.get("overlap_p2p_comm", True):
        yield given[0], "an interleaved pipeline of 2 stages needs overlap_p2p_comm: true"


def _counted_layers(values: Mapping[str, Any]) -> int:
    """Return the number of layers to distribute: embedding and loss may count as one each."""
    return int(values.get("num_layers") or 0) + sum(1 for name in _COUNTED if values.get(name))


def _even_violations(values: Mapping[str, Any], pp: int, vpp: int) -> Iterator[Violation]:
    layers, total = values.get("num_layers"), _counted_layers(values)
    per_chunk = values.get("num_layers_per_virtual_pipeline_stage")
    unit = pp * (per_chunk or vpp)
    if layers and total % unit:
        counted = str(total) if total == layers else f"{layers} (counted as {total})"
        chunks = f" x {vpp} chunks per stage" if vpp > 1 else ""
        if per_chunk:
            chunks = f" x {per_chunk} layers per chunk"
        why = f"pipeline_model_parallel_size {pp}{chunks}"
        yield "num_layers", f"num_layers {counted} must be a multiple of {unit} ({why})"


def _uneven_violations(
    values: Mapping[str, Any], uneven: list[str], pp: int, vpp: int
) -> Iterator[Violation]:
    for name in uneven:
        if values[name] < 1 or values[name] % vpp:
            yield name, f"{name} {values[name]} must be a multiple of {vpp} and at least 1"
            return
    layers = int(values.get("num_layers") or 0)
    left, stages = layers - sum(values[name] for name in uneven), pp - len(uneven)
    fits = left > 0 and left % (stages * vpp) == 0 if stages > 0 else left == 0 and stages == 0
    if not fits:
        yield uneven[0], f"{left} layers cannot fill {stages} stages x {vpp} chunks between the uneven ends"


def interleaving_violation(values: Mapping[str, Any], pp: int, vpp: int, micro_batches: int) -> str:
    """Return why an interleaved pipeline cannot run this many micro-batches per step; empty if it can."""
    if vpp == 1 or pp == 1:
        return ""
    group = values.get("microbatch_group_size_per_vp_stage") or pp
    if not pp <= group <= micro_batches or 0 < micro_batches % group < pp:
        return (
            f"an interleaved pipeline needs a multiple of {group} micro-batches per step, not {micro_batches}"
        )
    return ""
