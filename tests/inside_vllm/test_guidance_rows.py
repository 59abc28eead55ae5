"""The processor of guided requests: vLLM's two interfaces, and the tokens that it draws."""

from __future__ import annotations

import random
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from vllm import SamplingParams
from vllm.config import ModelConfig, ParallelConfig, VllmConfig
from vllm.exceptions import VLLMValidationError
from vllm.v1.sample import logits_processor as first
from vllm.v1.worker.gpu.sample import logits_processor as second

from flagscale.errors import UserError
from tests.unit.test_guidance_seams import engine
from vllm_flagscale.guidance.processor import GuidedProcessor
from vllm_flagscale.guidance.request import ROW, Row, extra_args
from vllm_flagscale.guidance.sampling import Draws, combine, draw
from vllm_flagscale.guidance.wiring import PROCESSOR

CPU = torch.device("cpu")
NEVER = float("-inf")


# ---- the two interfaces
def params(row: Row | None) -> SamplingParams:
    return SamplingParams(temperature=0.0, extra_args={ROW: row} if row else None)


class V1:
    """A batch as model runner V1 keeps it: places without gaps, and one update per step."""

    def __init__(self) -> None:
        self.processor = GuidedProcessor(engine(), CPU, False)
        self.batch: list[str] = []
        self.outputs: dict[str, list[int]] = {}

    def step(self, rows: dict[str, tuple[Row | None, int]], rng: random.Random) -> list[str]:
        builder = first.BatchUpdateBuilder()
        holes = sorted(place for place, name in enumerate(self.batch) if name not in rows)
        for place in holes:
            builder.removed_append(place)
        kept: list[str | None] = [name if name in rows else None for name in self.batch]
        new = [name for name in rows if name not in self.batch]
        for name in new:
            reused = builder.pop_removed()
            place = len(kept) if reused is None else reused
            kept += [None] * (place + 1 - len(kept))
            kept[place] = name
            self.outputs[name] = []
            builder.added.append((place, params(rows[name][0]), [1], self.outputs[name]))
        while None in kept:  # the last request moves to the first hole
            hole, last = kept.index(None), len(kept) - 1
            if kept[last] is not None:
                kept[hole] = kept[last]
                builder.moved.append((last, hole, first.MoveDirectionality.UNIDIRECTIONAL))
            kept.pop()
        if len(kept) > 1 and rng.random() < 0.5:
            a, b = rng.sample(range(len(kept)), 2)
            kept[a], kept[b] = kept[b], kept[a]
            builder.moved.append((a, b, first.MoveDirectionality.SWAP))
        self.batch = [name for name in kept if name is not None]
        self.processor.update_state(builder.get_and_reset(len(self.batch)))
        for name, (_, step) in rows.items():
            self.outputs[name][:] = [5] * step
        return self.batch

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return self.processor.apply(logits)


class V2:
    """A batch as model runner V2 keeps it: slots that are reused, and a new order in each step."""

    PROMPT = 11

    def __init__(self) -> None:
        self.prompt_len = SimpleNamespace(np=np.full(64, self.PROMPT))
        self.processor = GuidedProcessor(engine(), SimpleNamespace(prompt_len=self.prompt_len))
        self.slots: dict[str, int] = {}
        self.ctx: Any = None

    def step(self, rows: dict[str, tuple[Row | None, int]], rng: random.Random) -> list[str]:
        self.slots = {name: slot for name, slot in self.slots.items() if name in rows}
        for name in rows:
            if name not in self.slots:
                self.slots[name] = min(set(range(64)) - set(self.slots.values()))
                assert self.processor.add_request(self.slots[name], params(rows[name][0])) == bool(
                    rows[name][0]
                )
        names = rng.sample(list(rows), len(rows))
        self.ctx = SimpleNamespace(
            idx_mapping_np=np.array([self.slots[name] for name in names], dtype=np.int32),
            seq_lens_upper_bound_np=np.array([self.PROMPT + rows[name][1] for name in names]),
        )
        return names

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return self.processor.apply(logits, self.ctx)


SAMPLINGS = [
    {},
    {"temperature": 1.0, "top_k": 5},
    {"temperature": 0.7, "top_k": 9, "top_p": 0.8},
    {"temperature": 1.3, "top_p": 0.9, "min_p": 0.02},
    {"temperature": 1.0},
]


@pytest.mark.parametrize("seed", range(4))
def test_both_interfaces_give_the_same_tokens_in_any_company(seed: int) -> None:
    rng = random.Random(seed)
    batches = V1(), V2()
    rows: dict[str, tuple[Row | None, int]] = {}
    for at in range(25):
        for name in [name for name in rows if not name.endswith("!") and rng.random() < 0.2]:
            rows.pop(name)
            rows.pop(f"{name}!", None)
        for number in range(rng.randrange(3)):
            name = f"{at}.{number}"
            if rng.random() < 0.3:
                rows[name] = None, 0
                continue
            row = Row(name, False, rng.choice([0.0, 0.5, 3.0]), rng.randrange(2**63), **rng.choice(SAMPLINGS))
            both = [(name, row), (f"{name}!", Row(name, True, row.scale, row.seed))]
            rows |= {key: (one, 0) for key, one in rng.sample(both, 2)}
        rows = {name: (row, step + 1) for name, (row, step) in rows.items()}
        generator = torch.Generator().manual_seed(100 * seed + at)
        logits = {name: torch.randn(40, generator=generator) for name in rows}
        found = []
        for batch in batches:
            names = batch.step(rows, rng)
            given = torch.stack([logits[name] for name in names]) if names else torch.empty(0, 40)
            found.append(dict(zip(names, batch.apply(given), strict=True)))
        for name, (row, step) in rows.items():
            if row is None:
                expected = logits[name]
            else:
                expected = alone(
                    rows[row.request_id][0], logits[row.request_id], logits[f"{row.request_id}!"], step
                )
            for one in found:
                torch.testing.assert_close(one[name], expected, rtol=0, atol=0)


def alone(row: Row | None, prompt: torch.Tensor, negative: torch.Tensor, step: int) -> torch.Tensor:
    """Return the logits of both rows, if the request is alone in the batch."""

    assert row is not None
    scales = torch.tensor([[row.scale]])
    combined = combine(prompt.clone().unsqueeze(0), negative.unsqueeze(0), scales)
    if row.temperature == 0:
        return combined[0]
    token = draw(combined, Draws.of([row], 40, CPU), [step])
    return torch.full((40,), NEVER).index_fill_(0, token, 0.0)


@pytest.mark.parametrize("guided", [(0, 2), (0, 1), (3, 1), (0, 3)])
@pytest.mark.parametrize("sampling", SAMPLINGS[:2])
def test_both_rows_may_have_any_places(guided: tuple[int, int], sampling: dict[str, Any]) -> None:
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(2))
    for twins in permutations({0, 1, 2, 3} - set(guided)):
        processor = GuidedProcessor(engine(), CPU, False)
        builder = first.BatchUpdateBuilder()
        rows = [Row(name, False, 3.0, 9, **sampling) for name in "ab"]
        for row, place, twin in zip(rows, guided, twins, strict=True):
            builder.added.append((place, params(row), [1], []))
            builder.added.append((twin, params(Row(row.request_id, True, 3.0, 9)), [1], []))
        processor.update_state(builder.get_and_reset(4))
        found = processor.apply(logits.clone())
        for row, place, twin in zip(rows, guided, twins, strict=True):
            expected = alone(row, logits[place], logits[twin], 0)
            assert torch.equal(found[place], expected)
            assert torch.equal(found[twin], expected)


def test_both_loaders_of_vllm_take_the_class_and_check_parameters_with_it() -> None:
    wrong = SamplingParams(extra_args=extra_args(-1.0, [1]))
    with pytest.raises(
        VLLMValidationError, match=r"`guidance_scale` takes a number of at least 0, not -1\.0"
    ):
        first.validate_logits_processors_parameters([PROCESSOR], wrong)
    check = second.build_custom_logits_processors_params_validator([PROCESSOR])
    with pytest.raises(
        VLLMValidationError, match=r"`guidance_scale` takes a number of at least 0, not -1\.0"
    ):
        check(wrong)
    config = engine()
    config.scheduler_config = SimpleNamespace(max_num_seqs=4)
    loaded = first.build_logitsprocs(config, CPU, False, False, [PROCESSOR])
    assert type([*loaded.non_argmax_invariant][-1]) is GuidedProcessor
    names = (
        "device",
        "max_num_reqs",
        "vocab_size",
        "all_token_ids",
        "prompt_len",
        "prefill_len",
        "total_len",
    )
    states = SimpleNamespace(**dict.fromkeys(names))
    (processor,) = second.build_custom_logits_processors(config, states, False, [PROCESSOR])
    assert type(processor) is GuidedProcessor


def test_an_engine_that_cannot_sample_guided_requests_does_not_start() -> None:
    with pytest.raises(UserError, match="`guidance` cannot be combined with speculative decoding"):
        GuidedProcessor(engine(speculative_config=object()), CPU, False)
    fields = VllmConfig.__dataclass_fields__
    assert {"parallel_config", "model_config", "watermark_config", "speculative_config"} <= set(fields)
    assert "enable_batch_sharded_sampling" in ParallelConfig.__dataclass_fields__
    assert "logprobs_mode" in ModelConfig.__dataclass_fields__


FIELDS = {
    # what the frontend or the scheduler does with a request as a whole
    **dict.fromkeys(
        ("n", "seed", "stop", "stop_token_ids", "ignore_eos", "max_tokens", "detokenize"), "works"
    ),
    **dict.fromkeys(("skip_special_tokens", "spaces_between_special_tokens", "output_kind"), "works"),
    **dict.fromkeys(("include_stop_str_in_output", "stream_interval", "skip_clone", "extra_args"), "works"),
    **dict.fromkeys(("repetition_detection", "skip_reading_prefix_cache"), "works"),
    # drawn by the processor
    **dict.fromkeys(("temperature", "top_p", "top_k", "min_p"), "works"),
    # masks and shifts of the row of the prompt, before the processor
    **dict.fromkeys(("min_tokens", "logit_bias", "allowed_token_ids", "bad_words"), "works"),
    "structured_outputs": "works",
    # of the row of the prompt alone, before guidance
    **dict.fromkeys(("logprobs", "logprob_token_ids", "flat_logprobs", "prompt_logprobs"), "works"),
    **dict.fromkeys(("prompt_logprob_token_ids", "prompt_logprob_start"), "works"),
    "routed_experts_prompt_start": "works",
    "watermarking": "refused by the argument of the engine",
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "repetition_penalty"), "refused"),
    **dict.fromkeys(("thinking_token_budget", "trace_decode_token_ids"), "refused"),
}


def test_every_field_of_vllm_s_parameters_has_been_decided() -> None:
    internal = {"output_text_buffer_length"}
    public = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")} - internal
    assert public == set(FIELDS)
    given = {"thinking_token_budget": 4, "trace_decode_token_ids": [1], "repetition_penalty": 1.1}
    for name in [name for name, kind in FIELDS.items() if kind == "refused"]:
        with pytest.raises(ValueError, match=f"`{name}`"):
            GuidedProcessor.validate_params(
                SamplingParams(extra_args=extra_args(3.0, [1]), **{name: given.get(name, 0.5)})
            )
