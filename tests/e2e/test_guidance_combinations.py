"""Guided requests together with LoRA, structured output, and engines that are split over several ranks.

Every answer is compared with transformers: its own guidance, with the adapter merged into the weights, or its
logits under a mask that this file computes from the sentences that a constraint allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from flagscale_testing.adapters import make_adapter, merge
from flagscale_testing.guided import Case, byte_level_tokenizer, cases, greedy_answers, make_llama
from flagscale_testing.guided_engine import answers
from tests.e2e.test_serve import has_vllm

pytestmark = [
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)"),
    pytest.mark.timeout(900),
    pytest.mark.slow,  # an engine per test; test_guided_engine.py has a constraint among its requests
]

CASES = [*cases()]
TOKENS = 16
FEW_BLOCKS = {"block_size": 32, "num_gpu_blocks_override": 12}
"""A cache that the requests do not fit into together: some are preempted."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [make_adapter(model, folder / f"adapter_{seed}", seed) for seed in (1, 2)]


def test_two_ranks_answer_as_transformers(model: Path) -> None:
    got = answers(model, [asked(case) for case in CASES], tensor_parallel_size=2, **FEW_BLOCKS)
    assert [one["tokens"][0] for one in got] == greedy_answers(model, CASES, TOKENS)


@pytest.mark.parametrize("max_loras", [1, 2])
def test_both_rows_use_the_adapter(model: Path, adapters: list[Path], tmp_path: Path, max_loras: int) -> None:
    # All requests have an adapter: vLLM 0.32.0 gives those without one the adapter of others on CPU
    # (`lora/ops/torch_ops/lora_ops.py` takes the last adapter for index -1), ordinary requests as well.
    every = [*CASES, *(replace(case, scale=1.0) for case in CASES[:2])]
    asking = [asked(case, adapter=str(one)) for one, case in product(adapters, every)]
    got = answers(model, asking, enable_lora=True, max_loras=max_loras, max_lora_rank=8)
    folders = [merge(model, one, tmp_path / one.name) for one in adapters]
    expected = [answer for folder in folders for answer in greedy_answers(folder, every, TOKENS)]
    assert [one["tokens"][0] for one in got] == expected
    without = greedy_answers(model, every, TOKENS)
    assert all(answer not in without for answer in expected)


SENTENCES = ["yes!", "yellow", "no", *(f"{number:03d}!" for number in range(1000))]
# No sentence begins with another one: where one may end, outlines_core 0.2.14 allows the end, and
# other tokens only if it may end after them as well.
CONSTRAINTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "regex": ({"regex": "(yes!|yellow|no|[0-9]{3}!)"}, SENTENCES),
    "choice": ({"choice": ["yes!", "yellow", "no", "nay"]}, ["yes!", "yellow", "no", "nay"]),
    "json": ({"json": {"type": "string", "enum": ["one", "two", "twelve"]}}, ['"one"', '"two"', '"twelve"']),
}


@pytest.mark.parametrize("backend", ["xgrammar", "guidance", "outlines"])
def test_a_constraint_masks_what_guidance_draws(model: Path, backend: str) -> None:
    every = [(case, *one) for case in CASES[:6] for one in CONSTRAINTS.values()]
    asking = [asked(case, ignore_eos=False, structured_outputs=given) for case, given, _ in every]
    beside = [asked(case) for case in CASES[:2]]
    got = answers(model, [*asking, *beside], structured_outputs_config={"backend": backend})
    assert [one["tokens"][0] for one in got] == [
        *constrained(model, [(case, sentences) for case, _, sentences in every]),
        *greedy_answers(model, CASES[:2], TOKENS),
    ]


def asked(case: Case, **more: Any) -> tuple[Sequence[int], dict[str, Any]]:
    """Return a greedy request as the engine gets it, ordinary if its scale is 1."""
    guidance = {"guidance_scale": case.scale, "negative_prompt_token_ids": case.negative}
    sampling = {"temperature": 0, "max_tokens": TOKENS, "ignore_eos": True, "extra_args": guidance}
    return case.prompt, {**sampling, **more}


def constrained(folder: Path, requests: Sequence[tuple[Case, Sequence[str]]]) -> list[list[int]]:
    """Return the greedy guided tokens of transformers' logits if only some sentences are allowed."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = byte_level_tokenizer()
    end = tokenizer.eos_token_id
    found = []
    for case, sentences in requests:
        allowed = [[*tokenizer.encode(one, add_special_tokens=False), end] for one in sentences]
        answer: list[int] = []
        while answer[-1:] != [end]:
            with torch.no_grad():
                prompt, negative = (
                    model(torch.tensor([[*begin, *answer]])).logits[0, -1]
                    for begin in (case.prompt, case.negative)
                )
            logits = negative + case.scale * (prompt - negative)
            following = {one[len(answer)] for one in allowed if one[: len(answer)] == answer}
            answer.append(max(following, key=lambda token: float(logits[token])))
        found.append(answer)
    return found
