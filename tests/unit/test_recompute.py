"""Recompute by stage and micro-batch: what the lists mean, and every mistake in them at once."""

from __future__ import annotations

import json
from itertools import batched
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagscale.checks.recompute import (
    GRANULARITY,
    LISTS,
    METHOD,
    NUM_LAYERS,
    Setting,
    chunk_layers,
    has_recompute_schedule,
    recompute_schedule,
    recompute_violations,
)

FULL = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
    "num_layers": 8,
}
BLOCK, UNIFORM = Setting("full", "block", 1), Setting("full", "uniform", 1)


def found(pp: int = 1, vpp: int | None = 1, micro_batches: int = 4, **values: Any) -> list[tuple[str, str]]:
    return list(recompute_violations(FULL | values, pp, vpp, micro_batches))


def test_without_lists_there_is_nothing_to_say() -> None:
    assert not has_recompute_schedule(FULL)
    assert not found()
    assert not list(recompute_violations({}, 2, 1, 4))


def test_the_example_of_the_reference() -> None:
    """`[1, 30, 0, 2, 0]` = one stage, 30 micro-batches with 0, then 2 with 0."""
    values = FULL | {GRANULARITY: [[1, 30, 0, 2, 0], [1, 30, 1, 2, 0]], METHOD: [[2, 31, 0, 1, 1]]}
    assert not list(recompute_violations(values, 2, 1, 32))
    lists = recompute_schedule(values)
    assert {lists.resolve(0, i).granularity for i in range(32)} == {None}
    assert [lists.resolve(1, i).granularity for i in range(32)] == ["full"] * 30 + [None] * 2
    assert [lists.resolve(1, i).method for i in (30, 31)] == ["uniform", "block"]


def test_a_list_that_is_not_given_leaves_the_setting_as_it_is() -> None:
    assert recompute_schedule(FULL | {METHOD: [[1, 1, 1, 3, 0]]}).resolve(0, 0) == BLOCK
    assert recompute_schedule(FULL | {METHOD: [[1, 1, 1, 3, 0]]}).resolve(0, 3) == UNIFORM
    block = FULL | {"recompute_method": "block", "recompute_num_layers": 3}
    assert recompute_schedule(block | {GRANULARITY: [[1, 4, 1]]}).resolve(0, 0) == Setting("full", "block", 3)
    assert recompute_schedule(block | {NUM_LAYERS: [[1, 4, 2]]}).resolve(0, 0) == Setting("full", "block", 2)


@pytest.mark.parametrize(
    "value",
    [
        [[1, 1, 0, 3, 1], [1, 4, 1]],
        "[[1,1,0,3,1],[1,4,1]]",
        ["1, 1, 0, 3, 1", "1, 4, 1"],
        ["[1, 1, 0, 3, 1]", "[1, 4, 1]"],
    ],
)
def test_the_lists_may_be_lists_or_text(value: Any) -> None:
    assert not found(pp=2, **{GRANULARITY: value})
    lists = recompute_schedule(FULL | {GRANULARITY: value})
    assert [lists.resolve(0, i).granularity for i in range(4)] == [None, "full", "full", "full"]


@st.composite
def tables(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    """Rows as a user writes them, and the plain table of stages and micro-batches that they mean."""
    micro_batches = draw(st.integers(1, 6))
    rows, table = [], []
    for _ in range(draw(st.integers(1, 4))):
        plain = draw(st.lists(st.integers(0, 1), min_size=micro_batches, max_size=micro_batches))
        stages, size = draw(st.integers(1, 3)), draw(st.integers(1, micro_batches))
        # Cut anywhere, not only where the value changes.
        pairs = [[1, value] for value in plain[:size]]
        for value in plain[size:]:
            if value == pairs[-1][1]:
                pairs[-1][0] += 1
            else:
                pairs.append([1, value])
        rows.append([stages, *(number for pair in pairs for number in pair)])
        table += [plain] * stages
    return rows, table


@given(tables(), st.sampled_from([1, 2]))
def test_rows_mean_their_table(drawn: tuple[list[list[int]], list[list[int]]], vpp: int) -> None:
    rows, table = drawn
    values = FULL | {"num_layers": None, GRANULARITY: json.dumps(rows), METHOD: rows}
    if len(table) % vpp == 0:
        assert not list(recompute_violations(values, len(table) // vpp, vpp, len(table[0])))
    lists = recompute_schedule(values)
    for stage, plain in enumerate(table):
        for micro_batch, value in enumerate(plain):
            setting = lists.resolve(stage, micro_batch)
            assert setting == Setting("full" if value else None, ("uniform", "block")[value], 1)
    assert all(sum(count for count, _ in batched(row[1:], 2)) == len(table[0]) for row in rows)


BAD: list[tuple[dict[str, Any], str]] = [
    ({}, "must be a list of rows [stages, n0, v0, n1, v1, ...], not"),
    ({"value": "1"}, "must be a list of rows"),
    ({"value": "[[1, 4, 0]"}, "must be a list of rows"),
    ({"value": [[]]}, "row 1 is []"),
    ({"value": [[1]]}, "row 1 is [1]"),
    ({"value": [[1, 4]]}, "row 1 is [1, 4]"),
    ({"value": [1, 4, 0]}, "row 1 is 1"),
    ({"value": [[1, 4, 0], [1, 4, 0.5]]}, "row 2 is [1, 4, 0.5]"),
    ({"value": [[1, 4, True]]}, "row 1 is [1, 4, true]"),
    ({"value": [[1, 4, "x"]]}, 'row 1 is [1, 4, "x"]'),
    ({"value": ["1; 4; 0"]}, "row 1 is"),
    ({"value": [[0, 4, 0], [1, 4, 0]]}, "at least 1, not 0"),
    ({"value": [[1, 5, 0, -1, 0]]}, "at least 1, not -1"),
    ({"value": [[1, 3, 0]]}, "row 1 covers 3 micro-batches, but a step has 4"),
    ({"value": [[1, 4, 0, 1, 1]]}, "row 1 covers 5 micro-batches, but a step has 4"),
    ({"value": [[1, 4, 2]]}, "a value must be 0 (off) or 1 (full), not 2"),
    ({"value": [[1, 4, -1]]}, "a value must be 0 (off) or 1 (full), not -1"),
    ({"value": [[2, 4, 0]]}, "covers 2 stages, not pipeline_model_parallel_size 1"),
    (
        {"value": [[2, 4, 0]], "pp": 2, "vpp": 2},
        "not pipeline_model_parallel_size 2 x 2 chunks per stage = 4",
    ),
    ({"value": [[3, 4, 0]], "pp": 2, "vpp": None}, "not a multiple of pipeline_model_parallel_size 2"),
    ({"value": [[1, 4, 0]], "recompute_granularity": "selective"}, "needs recompute_granularity: full"),
    ({"value": [[1, 4, 0]], "recompute_activations": True}, "needs recompute_granularity: full"),
    (
        {"value": [[1, 4, 0]], "step_batch_size_schedule": "0:4 8:8"},
        "cannot be combined with `step_batch_size_schedule`",
    ),
]


@pytest.mark.parametrize(("case", "message"), BAD)
def test_a_mistake_has_one_message(case: dict[str, Any], message: str) -> None:
    case = {"value": []} | case
    told = found(**{GRANULARITY if name == "value" else name: value for name, value in case.items()})
    assert len(told) == 1, told
    assert told[0][0] == GRANULARITY
    assert message in told[0][1]


def test_all_mistakes_of_all_lists_are_told_at_once() -> None:
    told = found(
        pp=2,
        **{
            "recompute_granularity": None,
            GRANULARITY: "[[1, 4, 0], [1, 3, 7]]",
            METHOD: [[3, 4, 2]],
            NUM_LAYERS: [[2, 4]],
        },
    )
    assert [dest for dest, _ in told] == [GRANULARITY] * 3 + [METHOD] * 2 + [NUM_LAYERS]
    assert set(LISTS) == {dest for dest, _ in told}


def test_numbers_of_layers_count_where_something_is_recomputed() -> None:
    granularity = [[1, 4, 0], [1, 2, 0, 2, 1]]
    assert not found(pp=2, **{GRANULARITY: granularity, NUM_LAYERS: [[1, 4, 9], [1, 2, 0, 2, 4]]})
    told = found(pp=2, **{GRANULARITY: granularity, NUM_LAYERS: [[1, 4, 9], [1, 2, 0, 1, 0, 1, 5]]})
    assert [what.partition("`: ")[2] for _, what in told] == [
        "stage 1 must recompute at least 1 layer, not 0",
        "stage 1 has only 4 layers, not 5",
    ]
    assert [what for _, what in found(**{NUM_LAYERS: [[1, 4, -1]]})] == [
        f"`{NUM_LAYERS}` row 1: a number of layers must be at least 0, not -1"
    ]


def test_layers_are_those_of_the_chunk() -> None:
    uneven = {"decoder_first_pipeline_num_layers": 2}
    assert chunk_layers(FULL | uneven, 2, 1) == (2, 6)
    assert chunk_layers(FULL | uneven, 2, 2) == (1, 3, 1, 3)
    assert not found(pp=2, vpp=2, **uneven, **{NUM_LAYERS: [[1, 4, 1], [1, 4, 3]] * 2})
    told = found(pp=2, vpp=2, **uneven, **{NUM_LAYERS: [[4, 4, 3]]})
    assert [what.partition("`: ")[2] for _, what in told] == [
        "stage 0 has only 1 layers, not 3",
        "stage 2 has only 1 layers, not 3",
    ]
    layout = {"pipeline_model_parallel_layout": "Et|ttttttt|L"}
    assert chunk_layers(FULL | layout, 3, 1) is None
    assert not found(pp=3, vpp=None, **layout, **{NUM_LAYERS: [[3, 4, 7]]})
