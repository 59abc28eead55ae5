"""Guided requests at temperature 0 give the tokens of transformers, whatever the settings of the engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flagscale_testing.guided import LENGTHS, Case, cases, greedy_answers, make_llama
from flagscale_testing.guided_engine import answers_of_engines
from tests.e2e.test_serve import has_vllm

pytestmark = [
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)"),
    pytest.mark.timeout(900),
    pytest.mark.slow,  # test_guidance.py compares a server's answers, test_guided_engine.py an engine's
]
TOKENS = 24
SCALE = "guidance_scale"
NEGATIVE = "negative_prompt_token_ids"


@dataclass(frozen=True)
class Reference:
    """A model, guided requests, one ordinary request, and what transformers answers to each."""

    model: Path
    requests: list[Case]
    tokens: list[list[int]]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    model = make_llama(tmp_path_factory.mktemp("guided") / "llama")
    requests = [*cases(LENGTHS), Case((7, 8, 9), (1,), 1)]
    return Reference(model, requests, greedy_answers(model, requests, TOKENS))


def sampling(case: Case, **fields: Any) -> dict[str, Any]:
    guidance = {SCALE: case.scale, NEGATIVE: list(case.negative)} if case.scale != 1 else None
    return {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, "extra_args": guidance, **fields}


SETTINGS: dict[str, dict[str, Any]] = {
    "prefix cache off": {"enable_prefix_caching": False},
    "prefix cache on, blocks of 32": {"enable_prefix_caching": True, "block_size": 32},
    "blocks of 64": {"block_size": 64},
    "chunked prefill, 16 tokens per step": {"max_num_batched_tokens": 16, "max_num_seqs": 8},
    "2 sequences": {"max_num_seqs": 2},
    "3 sequences": {"max_num_seqs": 3},
    "5 sequences, asynchronous": {"max_num_seqs": 5, "async_scheduling": True},
    "16 blocks of cache": {"num_gpu_blocks_override": 16, "block_size": 32},
    "12 blocks of cache, asynchronous": {
        "num_gpu_blocks_override": 12,
        "async_scheduling": True,
        "block_size": 32,
    },
    "priorities": {"scheduling_policy": "priority"},
}
"""Beside the default of the tests: asynchronous scheduling off, a prefix cache, 16 sequences."""


def equal(reference: Reference, engines: list[dict[str, Any]]) -> list[int]:
    """Return how many requests get the tokens of transformers from each engine."""
    asked = [(case.prompt, sampling(case)) for case in reference.requests]
    return [
        sum(one["tokens"] == [tokens] for one, tokens in zip(found, reference.tokens, strict=True))
        for found in answers_of_engines(reference.model, asked, engines)
    ]


def test_guided_requests_equal_transformers_with_asynchronous_scheduling(reference: Reference) -> None:
    assert equal(reference, [{"async_scheduling": True}]) == [len(reference.requests)]


def test_guided_requests_equal_transformers_whatever_the_settings(reference: Reference) -> None:
    found = dict(zip(SETTINGS, equal(reference, [*SETTINGS.values()]), strict=True))
    print(*(f"| {name} | {same} of {len(reference.requests)} |" for name, same in found.items()), sep="\n")
    assert found == dict.fromkeys(SETTINGS, len(reference.requests))
