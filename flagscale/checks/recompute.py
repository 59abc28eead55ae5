"""Recompute that differs between pipeline stages and micro-batches: FlagScale's three lists of lists.

Each list has one row for a run of stages, `[stages, n0, v0, n1, v1, ...]`: in those stages the first `n0`
micro-batches of a step take the value `v0`, the next `n1` take `v1`, and so on. The rows cover all stages; of
an interleaved pipeline all model chunks, in the order of the layers (number of the chunk in its stage * pp +
stage). Values: granularity 0 off, 1 full; method 0 uniform, 1 block; num_layers as in `recompute_num_layers`.
A list that is not given leaves that setting as `recompute_granularity`, `_method` and `_num_layers` say.
(Meaning and order: FlagScale v0.6.0, `_parse_recompute_refined_config`.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import batched
from typing import Any, NamedTuple

from flagscale.errors import Violation

GRANULARITY, METHOD, NUM_LAYERS = LISTS = (
    "recompute_granularity_per_stage_micro_batch",
    "recompute_method_per_stage_micro_batch",
    "recompute_num_layers_per_stage_micro_batch",
)
"""The arguments (by dest) that hold the lists."""

_GRANULARITIES = (None, "full")
_METHODS = ("uniform", "block")

Table = tuple[tuple[int, ...], ...]
"""One value for each stage (or chunk) and micro-batch."""


class Setting(NamedTuple):
    """What one stage does with one micro-batch; `granularity` None: it recomputes nothing."""

    granularity: str | None
    method: str
    num_layers: int


@dataclass(frozen=True)
class RecomputeSchedule:
    """The checked lists; `default` stands in for those that are not given."""

    tables: Mapping[str, Table]
    default: Setting

    def resolve(self, stage: int, micro_batch: int) -> Setting:
        """Return what `stage` (of an interleaved pipeline: chunk) does with a micro-batch of a step."""
        given = {name: table[stage][micro_batch] for name, table in self.tables.items()}
        return Setting(
            _GRANULARITIES[given[GRANULARITY]] if GRANULARITY in given else self.default.granularity,
            _METHODS[given[METHOD]] if METHOD in given else self.default.method,
            given.get(NUM_LAYERS, self.default.num_layers),
        )


def has_recompute_schedule(values: Mapping[str, Any]) -> bool:
    """Say whether any of the lists is given."""
    return any(values.get(name) is not None for name in LISTS)


def recompute_schedule(values: Mapping[str, Any]) -> RecomputeSchedule:
    """Return the lists of arguments (by dest) in which `recompute_violations` finds nothing wrong."""
    tables = {name: _expand(_rows(values[name])) for name in LISTS if values.get(name) is not None}
    default = Setting("full", values["recompute_method"], values["recompute_num_layers"])
    return RecomputeSchedule(tables, default)


def recompute_violations(
    values: Mapping[str, Any], pp: int, vpp: int | None, micro_batches: int
) -> Iterator[Violation]:
    """Yield every mistake of the lists for `pp` stages of `vpp` chunks and the micro-batches of a step.

    `vpp` None: the chunks are not known (a pipeline layout given as text is left to the engine).
    """
    names = [name for name in LISTS if values.get(name) is not None]
    if not names:
        return
    if values.get("recompute_activations") or values.get("recompute_granularity") != "full":
        yield names[0], f"`{names[0]}` needs recompute_granularity: full"
    if values.get("step_batch_size_schedule"):
        what = "cannot be combined with `step_batch_size_schedule`: every step needs as many micro-batches"
        yield names[0], f"`{names[0]}` {what}"
        return
    tables: dict[str, Table] = {}
    for name in names:
        try:
            rows = _rows(values[name])
        except ValueError as error:
            yield name, f"`{name}` {error}"
            continue
        wrong = [*_row_violations(name, rows, micro_batches), *_stage_violations(name, rows, pp, vpp)]
        yield from wrong
        if not wrong:
            tables[name] = _expand(rows)
    if vpp is not None and NUM_LAYERS in tables and tables.keys() >= set(names) - {METHOD}:
        yield from _layer_violations(tables, chunk_layers(values, pp, vpp))


def chunk_layers(values: Mapping[str, Any], pp: int, vpp: int) -> tuple[int, ...] | None:
    """Return the layers of each chunk in their order; None if the arguments do not say.

    The rule is Megatron-core's `transformer_block.py:get_num_layers_to_build`.
    """
    layers = values.get("num_layers")
    if not layers or values.get("pipeline_model_parallel_layout") is not None:
        return None
    first = values.get("decoder_first_pipeline_num_layers")
    last = values.get("decoder_last_pipeline_num_layers")
    # What the embedding and the loss count for, they take away from the first and the last chunk.
    embedding = bool(values.get("account_for_embedding_in_pipeline_split"))
    loss = bool(values.get("account_for_loss_in_pipeline_split"))
    given = [count for count in (first, last) if count is not None]
    between = (layers + embedding + loss - sum(given)) // max(1, pp - len(given))
    stages = [between] * pp
    if first is not None:
        stages[0] = first
    if last is not None:
        stages[-1] = last
    chunks = [stage // vpp for stage in stages] * vpp
    chunks[0] -= embedding
    chunks[-1] -= loss
    return tuple(chunks)


def _rows(value: Any) -> list[list[int]]:
    """Return a list of rows, given as such or as JSON text; v0.6.0 also took each row as text: `1, 4, 0`."""
    rows = _json(value) if isinstance(value, str) else value
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"must be a list of rows [stages, n0, v0, n1, v1, ...], not {value!r}")
    rows = [_json(f"[{row.strip(' []()')}]") if isinstance(row, str) else row for row in rows]
    for index, row in enumerate(rows):
        # A bool is an int for Python, and no number for people.
        is_whole = isinstance(row, list) and all(type(number) is int for number in row)
        if not is_whole or len(row) < 3 or len(row) % 2 == 0:
            what = "[stages, n0, v0, n1, v1, ...] in whole numbers"
            raise ValueError(f"has rows {what}; row {index + 1} is {json.dumps(row, default=str)}")
    return rows


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _row_violations(name: str, rows: list[list[int]], micro_batches: int) -> Iterator[Violation]:
    for index, (stages, *pairs) in enumerate(rows, start=1):
        counts, settings = pairs[::2], pairs[1::2]
        row = f"`{name}` row {index}"
        if (least := min(stages, *counts)) < 1:
            yield name, f"{row}: numbers of stages and micro-batches must be at least 1, not {least}"
        elif sum(counts) != micro_batches:
            told = f"{sum(counts)} micro-batches, but a step has {micro_batches}"
            yield name, f"{row} covers {told} (global_batch_size / micro_batch_size / data parallel)"
        if name == NUM_LAYERS and min(settings) < 0:
            yield name, f"{row}: a number of layers must be at least 0, not {min(settings)}"
        elif name != NUM_LAYERS and set(settings) - {0, 1}:
            meaning = "0 (off) or 1 (full)" if name == GRANULARITY else "0 (uniform) or 1 (block)"
            yield name, f"{row}: a value must be {meaning}, not {min(set(settings) - {0, 1})}"


def _stage_violations(name: str, rows: list[list[int]], pp: int, vpp: int | None) -> Iterator[Violation]:
    told = sum(row[0] for row in rows)
    if vpp is None:
        if told % pp:
            yield name, f"`{name}` covers {told} stages, not a multiple of pipeline_model_parallel_size {pp}"
    elif told != pp * vpp:
        chunks = f" x {vpp} chunks per stage = {pp * vpp}" if vpp > 1 else ""
        yield name, f"`{name}` covers {told} stages, not pipeline_model_parallel_size {pp}{chunks}"


def _layer_violations(tables: Mapping[str, Table], layers: tuple[int, ...] | None) -> Iterator[Violation]:
    """Look at numbers of layers where they count: a micro-batch that recomputes nothing may have any."""
    granularity = tables.get(GRANULARITY)
    for stage, numbers in enumerate(tables[NUM_LAYERS]):
        used = {number for i, number in enumerate(numbers) if granularity is None or granularity[stage][i]}
        most = layers[stage] if layers else 0
        for number in sorted(used):
            if number < 1:
                yield (
                    NUM_LAYERS,
                    f"`{NUM_LAYERS}`: stage {stage} must recompute at least 1 layer, not {number}",
                )
            # A chunk without layers has nothing to recompute, whatever is asked of it.
            elif 0 < most < number:
                yield NUM_LAYERS, f"`{NUM_LAYERS}`: stage {stage} has only {most} layers, not {number}"


def _expand(rows: list[list[int]]) -> Table:
    return tuple(
        tuple(value for count, value in batched(pairs, 2) for _ in range(count))
        for stages, *pairs in rows
        for _ in range(stages)
    )
