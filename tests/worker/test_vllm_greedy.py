"""vLLM continues every family's models, exported from Megatron, as transformers continues the originals."""

from __future__ import annotations

import pytest

from flagscale_testing.conversion import CASES
from flagscale_testing.served_greedy import (
    OTHER_IN_VLLM,
    POSITIONS,
    PROMPTS,
    Continuations,
    all_served,
    answers,
)
from flagscale_testing.shapes import odd
from tests.worker.test_vllm_plugin import pytestmark

pytestmark = [pytest.mark.slow, *pytestmark, pytest.mark.timeout(3600)]  # one process answers for every test

ODD = "heads of another width"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Continuations]:
    every = {**all_served(CASES), ODD: odd(CASES["Llama 2"], POSITIONS)}
    return answers(every, tmp_path_factory.mktemp("greedy"))


@pytest.mark.parametrize("name", all_served(CASES))
def test_the_greedy_tokens_are_equal(name: str, found: dict[str, Continuations]) -> None:
    assert not found[name].refusal
    assert len(found[name].vllm) == len(PROMPTS)
    is_equal = found[name].vllm == found[name].transformers
    assert is_equal == (name not in OTHER_IN_VLLM), "remove it there if vLLM computes it now"


def test_heads_of_other_widths_are_refused(found: dict[str, Continuations]) -> None:
    assert found[ODD].refusal.startswith("Unsupported CPU attention configuration: head_dim=20 ")
