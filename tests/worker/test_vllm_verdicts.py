"""Values that we refuse before a start, and those next to them that we accept: vLLM itself agrees."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from flagscale.config.bounds import broken_bounds, types_of
from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.engines.vllm.refused import REFUSED as SET_BY_US
from tests.e2e.test_serve import has_vllm
from tests.unit.test_vllm_rules import CONTRADICTIONS, SERVER_CONTRADICTIONS
from tests.unit.test_vllm_sampling import ACCEPTED, REFUSED

ROOT = Path(__file__).resolve().parents[2]
OPTIONS = {option.dest: option for option in vllm_catalog().server.options.values()}
SAMPLES = (None, True, 0, 1, -1, 1.5, "x", "3", "on", ["x"], {"x": 1})
NEEDS_MORE = {"spec_tokens": "a model that drafts", "data_parallel_rank": "other ranks"}
"""Arguments of which no value is accepted alone."""

pytestmark = [
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)"),
    pytest.mark.timeout(600),
]


def ends(bounds: Mapping[str, Any]) -> Iterator[tuple[float, bool]]:
    """Yield the values on both sides of each end of a range, and whether they are within it."""
    step = 1e-6 if "number" in types_of(bounds) else 1
    for name, inwards in (("minimum", step), ("maximum", -step)):
        if name in bounds:
            yield from ((bounds[name], True), (bounds[name] - inwards, False))
        exclusive = f"exclusive{name.title()}"
        if exclusive in bounds:
            yield from ((bounds[exclusive] + inwards, True), (bounds[exclusive], False))
    yield from ((hole, False) for hole in bounds.get("not", {}).get("enum", ()))


def keys_of(bounds: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[list[str], Any]]:
    for name, inner in bounds.get("properties", {}).items():
        yield [*path, name], inner
        yield from keys_of(inner, (*path, name))


def arguments() -> Iterator[tuple[list[Any], bool]]:
    for dest, option in OPTIONS.items():
        yield from (([dest, value], is_within) for value, is_within in ends(option.bounds))


def keys() -> Iterator[tuple[list[Any], bool]]:
    for dest, option in OPTIONS.items():
        for path, bounds in keys_of(option.bounds):
            if bounds:
                yield from (([dest, path, value], is_within) for value, is_within in ends(bounds))
                for value in SAMPLES:
                    yield [dest, path, value], not [*broken_bounds(bounds, "", value)]


@pytest.mark.slow
def test_arguments_end_where_vllm_ends_them() -> None:
    cases = [(case, is_within) for case, is_within in arguments() if case[0] not in {*SET_BY_US, *NEEDS_MORE}]
    assert len(cases) > 100
    asked = [(kind, *case) for case, _ in cases for kind in ("argument", "field")]
    verdicts = iter(ask(asked))
    for case, is_within in cases:
        engine, field = next(verdicts), next(verdicts)
        # A class knows the ranges of what this small model lacks, the engine those that no class declares.
        assert (engine and field is not False) == is_within, case


def test_keys_of_mappings_have_the_types_and_ranges_of_vllm() -> None:
    cases = [*keys()]
    assert len(cases) > 1500
    verdicts = ask([("key", *case) for case, _ in cases])
    assert [
        case for (case, is_within), verdict in zip(cases, verdicts, strict=True) if verdict != is_within
    ] == []


def test_sampling_is_refused_as_vllm_refuses_it() -> None:
    refused = [(sampling, engine, False) for sampling, engine, _ in REFUSED]
    accepted = [(sampling, engine, True) for sampling, engine in ACCEPTED]
    at_ends = [
        ({"max_tokens": 100, name: value}, {"max_logprobs": -1}, is_within)
        for name, field in vllm_catalog().sampling.items()
        for value, is_within in ends({"type": "number" if "float" in field.kinds else "", **field.bounds})
    ]
    # Only vLLM can read it: the batch refuses it before it loads the model.
    at_start = [({"structured_outputs": {"regex": "["}}, {}, False)]
    cases = [*refused, *accepted, *at_ends, *at_start]
    verdicts = ask([("sampling", sampling, engine) for sampling, engine, _ in cases])
    assert [case for case, verdict in zip(cases, verdicts, strict=True) if case[2] != verdict] == []


def test_contradictions_are_refused_by_the_engine() -> None:
    cases = [("engine", *case) for case in CONTRADICTIONS]
    cases += [("server", *case) for case in SERVER_CONTRADICTIONS]
    verdicts = ask([(kind, keys) for kind, keys, _ in cases])
    for (_, given, blamed), verdict in zip(cases, verdicts, strict=True):
        assert verdict == (not blamed), given


GENERATION = {"repetition_penalty": 1.3, "temperature": 0.7, "max_new_tokens": 40, "eos_token_id": [1, 2]}


@pytest.mark.parametrize(
    ("given", "engine", "plain", "chat"),
    [
        # A server gives the same values to the same requests: completions and chats.
        ({}, {}, (0.7, 1.3, 16), (0.7, 1.3, 40)),
        ({"temperature": 0, "max_tokens": 5}, {}, (0, 1.3, 5), (0, 1.3, 5)),
        ({"temperature": None, "max_tokens": None}, {}, (0.7, 1.3, 40), (0.7, 1.3, 40)),
        ({"repetition_penalty": 1}, {"generation_config": "vllm"}, (1, 1, 16), (1, 1, None)),
        ({}, {"override_generation_config": {"temperature": 0.1}}, (0.1, 1.3, 16), (0.1, 1.3, 40)),
        ({}, {"override_generation_config": {"max_new_tokens": 9}}, (0.7, 1.3, 9), (0.7, 1.3, 9)),
    ],
)
def test_a_batch_takes_the_values_of_the_folder(
    given: dict[str, Any], engine: dict[str, Any], plain: tuple[Any, ...], chat: tuple[Any, ...]
) -> None:
    assert ask([("merged", given, engine, GENERATION)]) == [[[*plain], [*chat]]]


def test_chats_alone_may_be_longer_than_plain_prompts() -> None:
    longer = {"min_tokens": 17}
    assert ask([("sampling", longer, {}), ("chats", longer), ("chats", {"min_tokens": -1})]) == [
        False,
        True,
        False,
    ]


def test_a_server_reports_each_field_that_it_ignores_once() -> None:
    requests = [{"max_tokens": 3}, {"max_new_tokens": 3}, {"max_new_tokens": 3}, {"tempature": 1}]
    said = "WARNING: The following fields were present in the request but ignored: "
    assert ask([("ignored", requests)]) == [[said + "{'max_new_tokens'}", said + "{'tempature'}"]]


def test_on_cpu_a_request_in_the_middle_of_its_prompt_draws_nothing() -> None:
    (found,) = ask([("worker",)])
    if found is None:
        pytest.skip("vLLM runs on another device here")
    chosen, named, during, after = found
    assert (chosen, named) == ("vllm_flagscale.cpu_sampling.SeededSampling", "own.Worker")
    # Requests 0 and 2 have not reached the end of their prompts; 2 and 3 have seeds.
    assert (during, after) == ([3], [2, 3])


def ask(questions: list[Any]) -> list[Any]:
    """Return vLLM's verdicts (`vllm_verdicts.py`); one process answers all tests: its imports take long."""
    process = judge()
    assert process.stdin
    assert process.stdout
    process.stdin.write(json.dumps(questions) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, "the judge has ended"
    return list(json.loads(answer))


@cache
def judge() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("vllm_verdicts.py"))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'vllm'}:{ROOT}"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module", autouse=True)
def end_judge() -> Iterator[None]:
    yield
    if judge.cache_info().currsize:
        judge().kill()
        judge().communicate()
        judge.cache_clear()
