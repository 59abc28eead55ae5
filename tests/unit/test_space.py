"""The candidates of a tuner: legal by the rules of a start, each once; one message for each mistake."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pytest

from flagscale.checks.worker import Capabilities
from flagscale.errors import UserError
from flagscale.planner.tuning import candidates as module
from flagscale.planner.tuning.candidates import candidates
from flagscale.planner.tuning.space import Changes, read_space
from flagscale.values import Job

CPU = Capabilities(False, False, "gloo")
ONE = {
    "use_recompute": [False],
    "sequence_parallel": [False],
    "use_distributed_optimizer": [True],
    "micro_batch_size": [2],
    "num_layers_per_virtual_pipeline_stage": [0],
    "context_parallel_size": [1],
}
"""A space in which only the tensor, pipeline and data parallel degrees differ."""

Find = Callable[..., list[Changes]]


@pytest.fixture
def find(build: Callable[..., Job]) -> Find:
    """Return the candidates of a space for the small job of the unit tests, with other task keys if given."""

    def find(space: Mapping[str, Any], ranks: int = 4, **task: Any) -> list[Changes]:
        job = build({"disable_bias_linear": True, **task}, ranks=ranks, platform="cpu")
        return list(candidates(read_space(space, job.arguments, ranks, ranks, CPU)))

    return find


def degrees(found: Iterable[Changes]) -> list[tuple[int, int]]:
    return [(one["tensor_model_parallel_size"], one["pipeline_model_parallel_size"]) for one in found]


def test_auto_and_absent_dimensions_are_all_that_is_legal(find: Find) -> None:
    assert degrees(find(ONE)) == [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)]
    assert find({**ONE, "pipeline_model_parallel_size": "auto"}) == find(ONE)
    assert find({**ONE, "pipeline_model_parallel_size": None}) == find(ONE)


def test_every_candidate_passes_the_checks_of_a_start(find: Find, build: Callable[..., Job]) -> None:
    found = find({"use_recompute": "auto"}, ranks=4)
    assert len(found) > 500
    for one in found[::29]:
        given = {name: value for name, value in one.items() if value is not None}
        build({"disable_bias_linear": True, **given}, ranks=4, platform="cpu")


def test_a_list_is_taken_as_it_is_and_illegal_values_drop_out(find: Find) -> None:
    listed = {**ONE, "tensor_model_parallel_size": [4, 2, 3], "data_parallel_size": [1, 2]}
    assert degrees(find(listed)) == [(4, 1), (2, 1), (2, 2)]
    assert degrees(find({**ONE, "data_parallel_size": 4})) == [(1, 1)]


def test_layers_per_chunk_count_only_where_a_stage_has_several(find: Find) -> None:
    chunks = {**ONE, "num_layers_per_virtual_pipeline_stage": [1], "tensor_model_parallel_size": [1]}
    found = find(chunks, ranks=4)
    by_pp = {
        one["pipeline_model_parallel_size"]: one["num_layers_per_virtual_pipeline_stage"] for one in found
    }
    assert by_pp == {1: None, 2: 1, 4: None}


def test_recompute_is_what_the_four_dimensions_say(find: Find) -> None:
    def settings(**space: Any) -> list[tuple[Any, ...]]:
        found = find({**ONE, "tensor_model_parallel_size": [1], "data_parallel_size": [4], **space})
        names = ("recompute_granularity", "recompute_method", "recompute_num_layers")
        return [tuple(one[name] for name in names) for one in found]

    none, selective, uniform = (None, None, None), ("selective", None, None), ("full", "uniform", 1)
    blocks = [("full", "block", count) for count in (1, 2, 4)]
    assert settings(use_recompute="auto") == [none, selective, uniform, *blocks]
    assert settings(use_recompute=[True], recompute_granularity=["full"]) == [uniform, *blocks]
    full = {"use_recompute": [True], "recompute_granularity": ["full"]}
    listed = settings(**full, recompute_method=["uniform"], recompute_num_layers=[2, 4, 9])
    assert listed == [("full", "uniform", 2), ("full", "uniform", 4)]


def test_what_has_no_effect_is_not_tried_twice(find: Find) -> None:
    found = find({**ONE, "sequence_parallel": "auto", "use_distributed_optimizer": "auto"}, ranks=2)
    shown = [
        (*degrees([one])[0], one["sequence_parallel"], one["use_distributed_optimizer"]) for one in found
    ]
    assert shown == [
        (1, 1, False, True),
        (1, 1, False, False),
        (1, 2, False, False),
        (2, 1, True, False),
        (2, 1, False, False),
    ]


def test_other_arguments_of_the_engine_are_dimensions_too(find: Find) -> None:
    found = find({**ONE, "tensor_model_parallel_size": [1], "overlap_grad_reduce": [True, False]}, ranks=1)
    assert [one["overlap_grad_reduce"] for one in found] == [True, False]


def test_experts_are_divided_where_there_are_any(find: Find) -> None:
    experts = {"num_experts": 4, "moe_router_topk": 2, "moe_token_dispatcher_type": "alltoall"}
    found = find({**ONE, "tensor_model_parallel_size": [1], "pipeline_model_parallel_size": [1]}, **experts)
    assert [one["expert_model_parallel_size"] for one in found] == [1, 2, 4]


def test_the_space_of_the_example_of_v060(find: Find) -> None:
    """examples/aquila/conf/config_auto_tuner.yaml, in which v0.6.0 found no pipeline of up to two stages."""
    space = {
        **dict.fromkeys(("data_parallel_size", "pipeline_model_parallel_size"), "auto"),
        **dict.fromkeys(("context_parallel_size", "micro_batch_size"), "auto"),
        **dict.fromkeys(("recompute_method", "recompute_granularity", "recompute_num_layers"), "auto"),
        "use_distributed_optimizer": [True, False],
        "tensor_model_parallel_size": [2, 4, 8],
        "sequence_parallel": [True],
        "num_layers_per_virtual_pipeline_stage": [1],
        "expert_model_parallel_size": [1],
        "use_recompute": [True],
    }
    found = find(space, ranks=8)
    assert {(2, 1), (2, 2), (4, 1), (4, 2)} <= {*degrees(found)}
    assert all(one["recompute_granularity"] for one in found)


def test_a_layout_of_the_pipeline_given_as_text_stays(find: Find) -> None:
    written = {"pipeline_model_parallel_size": 2, "pipeline_model_parallel_layout": "Ettt|tL"}
    assert {pp for _, pp in degrees(find(ONE, **written))} == {2}


@pytest.mark.parametrize(
    ("space", "task", "says"),
    [
        ({"tensor_parallel_size": [1]}, {}, "did you mean `tensor_model_parallel_size`?"),
        ({"tensor_model_parallel_size": [0, 2]}, {}, "takes a list of whole numbers or `auto`, not 0"),
        ({"tensor_model_parallel_size": [True]}, {}, "takes a list of whole numbers or `auto`, not True"),
        ({"tensor_model_parallel_size": []}, {}, "but it is empty"),
        ({"sequence_parallel": ["yes"]}, {}, "takes a list of true or false or `auto`, not 'yes'"),
        ({"micro_batch_size": "all"}, {}, "takes a list of whole numbers or `auto`, not 'all'"),
        ({"overlap_grad_reduce": "auto"}, {}, "`overlap_grad_reduce: auto` is not known"),
        ({"global_batch_size": [8, 16]}, {}, "changes the training, not only its speed"),
        (
            {"tensor_model_parallel_size": [3]},
            {},
            "is legal; the last 9 were removed by\n    8 of them, such as: tensor 3",
        ),
        ({"data_parallel_size": [3]}, {}, "data_parallel_size would be 4, which the space does not list"),
        ({"micro_batch_size": [32]}, {}, "global_batch_size 16 must be a multiple of"),
        ({}, {"global_batch_size": None}, "`global_batch_size` is required"),
        ({**ONE, "recompute_method": ["block"]}, {}, "has no effect, because `use_recompute` is [false]"),
    ],
)
def test_a_space_that_cannot_be_used(find: Find, space: Any, task: Any, says: str) -> None:
    with pytest.raises(UserError) as raised:
        find(space, **task)
    (problem,) = raised.value.problems
    assert says in str(problem)


def test_all_mistakes_of_a_space_are_reported_at_once(find: Find) -> None:
    with pytest.raises(UserError) as raised:
        find({"micro_batch_size": ["x"], "sequence_parallel": [1], "no_such": [2]})
    assert len(raised.value.problems) == 3


def test_a_huge_space_says_how_large_it_is_and_how_to_narrow_it(
    find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST", 100)
    with pytest.raises(UserError) as raised:
        find({})
    (problem,) = raised.value.problems
    assert "legal candidates, more than 100; values by dimension: recompute 6" in problem.what
    assert "list fewer values" in problem.hint


def test_long_lists_of_values_are_searched_at_once(find: Find) -> None:
    sizes = [*range(1, 999)]
    names = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    listed = {**dict.fromkeys(names, sizes), "micro_batch_size": sizes}
    assert find({**ONE, **listed}) == find({**ONE, **dict.fromkeys(listed, "auto")})
    none = {**ONE, **listed, "data_parallel_size": [3]}
    with pytest.raises(UserError, match="no candidate of the space is legal"):
        find(none)


@pytest.mark.parametrize("value", [[[1, 2]], {"a": 1}, [{"a": 1}]])
def test_values_that_are_no_plain_values_are_refused(find: Find, value: Any) -> None:
    with pytest.raises(UserError, match="takes a list of whole numbers or `auto`, not"):
        find({**ONE, "tensor_model_parallel_size": value})
