"""The processor of guided requests: vLLM's two interfaces, and the tokens that it draws."""

from __future__ import annotations

import random
from itertools import permutations
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from flagscale.errors import UserError
from tests.e2e.test_serve import has_vllm
from tests.unit.test_guidance_seams import engine
from vllm_flagscale.guidance.request import ROW, Row, extra_args
from vllm_flagscale.guidance.wiring import PROCESSOR

if TYPE_CHECKING:
    from vllm import SamplingParams

pytestmark = [
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)"),
    # vLLM changes torch in the process that imports it: trainings of later tests would end.
    pytest.mark.slow,
]
CPU = torch.device("cpu")
NEVER = float("-inf")
DRAWS = 10_000


# ---- the two interfaces
def params(row: Row | None) -> SamplingParams:
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, extra_args={ROW: row} if row else None)


class V1:
    """A batch as model runner V1 keeps it: places without gaps, and one update per step."""

    def __init__(self) -> None:
        from vllm_flagscale.guidance.processor import GuidedProcessor

        self.processor = GuidedProcessor(engine(), CPU, False)
        self.batch: list[str] = []
        self.outputs: dict[str, list[int]] = {}

    def step(self, rows: dict[str, tuple[Row | None, int]], rng: random.Random) -> list[str]:
        from vllm.v1.sample import logits_processor as first

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
        from vllm_flagscale.guidance.processor import GuidedProcessor

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
    from vllm_flagscale.guidance.sampling import Draws, combine, draw

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
    from vllm.v1.sample import logits_processor as first

    from vllm_flagscale.guidance.processor import GuidedProcessor

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
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError
    from vllm.v1.sample import logits_processor as first
    from vllm.v1.worker.gpu.sample import logits_processor as second

    from vllm_flagscale.guidance.processor import GuidedProcessor

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
    from vllm.config import ModelConfig, ParallelConfig, VllmConfig

    from vllm_flagscale.guidance.processor import GuidedProcessor

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
    from vllm import SamplingParams

    from vllm_flagscale.guidance.processor import GuidedProcessor

    internal = {"output_text_buffer_length"}
    public = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")} - internal
    assert public == set(FIELDS)
    given = {"thinking_token_budget": 4, "trace_decode_token_ids": [1], "repetition_penalty": 1.1}
    for name in [name for name, kind in FIELDS.items() if kind == "refused"]:
        with pytest.raises(ValueError, match=f"`{name}`"):
            GuidedProcessor.validate_params(
                SamplingParams(extra_args=extra_args(3.0, [1]), **{name: given.get(name, 0.5)})
            )


# ---- both rows combined
def test_masks_of_the_prompt_stay_and_nothing_is_left_that_is_not_finite() -> None:
    from vllm_flagscale.guidance.sampling import combine

    prompt = torch.tensor([[1.0, NEVER, NEVER, 2.0, float("nan"), float("inf"), 3.0]])
    negative = torch.tensor([[0.5, 1.0, NEVER, NEVER, 1.0, 1.0, 3.0]])
    for scale, kept in ((3.0, 2.0), (0.5, 0.75), (0.7, 0.85), (0.0, 0.5)):
        (combined,) = combine(prompt.clone(), negative, torch.tensor([[scale]]))
        torch.testing.assert_close(combined[0], torch.tensor(kept))
        assert combined[1:3].tolist() == [NEVER, NEVER]
        assert combined[4:6].tolist() == [NEVER, NEVER]
        assert combined[6] == 3.0
        assert not (combined.isnan() | (combined == float("inf"))).any()


def test_a_row_without_any_finite_logit_still_gives_a_token() -> None:
    from vllm_flagscale.guidance.sampling import Draws, combine, draw

    combined = combine(torch.full((1, 9), float("nan")), torch.zeros(1, 9), torch.tensor([[3.0]]))
    for sampling in SAMPLINGS[1:]:
        (token,) = draw(
            combined.clone(), Draws.of([Row("a", False, 3.0, 1, **sampling)], 9, CPU), [0]
        ).tolist()
        assert 0 <= token < 9


# ---- distributions
def p_value(counts: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how likely counts at least as far from the expected ones are, by a chi-squared test."""
    rare = expected < 5
    pooled = [
        torch.cat((one[~rare], one[rare].sum().reshape(1))) for one in (counts.double(), expected.double())
    ]
    both = [(a, b) for a, b in zip(*pooled, strict=True) if b > 0]
    if len(both) == 1:
        return float(both[0][0] == both[0][1])
    statistic = sum((a - b) ** 2 / b for a, b in both)
    return float(torch.special.gammaincc(torch.tensor((len(both) - 1) / 2.0), torch.as_tensor(statistic) / 2))


def guided_draws(sampling: dict[str, Any], scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the counts of tokens that 10 000 guided requests draw, and the logits of both rows."""
    from vllm.v1.sample import logits_processor as first

    from vllm_flagscale.guidance.processor import GuidedProcessor

    both = torch.randn(2, 24, generator=torch.Generator().manual_seed(3))
    processor = GuidedProcessor(engine(), CPU, False)
    builder = first.BatchUpdateBuilder()
    for seed in range(DRAWS):
        row = Row(str(seed), False, scale, seed, **sampling)
        twin = Row(str(seed), True, scale, seed)
        for place, one in enumerate((row, twin), 2 * seed):
            builder.added.append((place, SimpleNamespace(extra_args={ROW: one}), None, []))
    processor.update_state(builder.get_and_reset(2 * DRAWS))
    tokens = processor.apply(both.repeat(DRAWS, 1)).argmax(1).view(DRAWS, 2)
    assert torch.equal(tokens[:, 0], tokens[:, 1]), "twins sample what their requests do"
    return torch.bincount(tokens[:, 0], minlength=24), both


def test_guided_tokens_follow_the_combined_distribution_and_the_test_notices_others() -> None:
    counts, (prompt, negative) = guided_draws({"temperature": 1.0})

    def p(scale: float, temperature: float) -> float:
        return p_value(counts, ((negative + scale * (prompt - negative)) / temperature).softmax(0) * DRAWS)

    assert p(3.0, 1.0) > 0.001
    assert p(2.8, 1.0) < 0.001
    assert p(3.0, 1.1) < 0.001


def tied_logits() -> torch.Tensor:
    """Return logits of which many are equal, as those of a model in bfloat16 are."""
    return (torch.randn(40, generator=torch.Generator().manual_seed(5)) * 2).round() / 2


@pytest.mark.parametrize("top_k", [0, 1, 7, 12, 39, 40, 100])
@pytest.mark.parametrize(("top_p", "min_p"), [(1.0, 0.0), (0.8, 0.0), (1.0, 0.05), (0.9, 0.05)])
def test_limits_mean_what_vllm_means_by_them(top_k: int, top_p: float, min_p: float) -> None:
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    from vllm_flagscale.guidance.sampling import Draws, draw, keys_of, log_exponentials

    logits = tied_logits() if top_p == 1 else torch.randn(40, generator=torch.Generator().manual_seed(6))
    expected = (logits / 0.8).softmax(0)
    kept = (logits / 0.8).masked_fill(expected < min_p * expected.max(), NEVER).unsqueeze(0)
    kept = apply_top_k_top_p(
        kept,
        torch.tensor([top_k]) if 0 < top_k < 40 else None,
        torch.tensor([top_p]) if top_p < 1 else None,
    )[0]
    row = Row("a", False, 3.0, 0, temperature=0.8, top_k=top_k, top_p=top_p, min_p=min_p)
    many = 2000
    draws = Draws.of([Row(**{**vars(row), "seed": seed}) for seed in range(many)], 40, CPU)
    tokens = draw(logits.repeat(many, 1), draws, [0] * many)
    counts = torch.bincount(tokens, minlength=40)
    assert counts[kept == NEVER].sum() == 0
    assert (counts[kept.softmax(0) * many > 15] > 0).all()
    assert p_value(counts, kept.softmax(0) * many) > 0.001
    # The noise belongs to tokens: it is the same with and without limits.
    noise = log_exponentials(keys_of(range(many), [0] * many), torch.arange(40).unsqueeze(0))
    assert torch.equal(tokens, (kept - noise).argmax(1))


# ---- noise
@pytest.mark.parametrize("varied", ["seeds", "steps", "tokens"])
def test_noise_is_exponential_and_independent_along_seeds_steps_and_tokens(varied: str) -> None:
    from vllm_flagscale.guidance.sampling import keys_of, log_exponentials

    count = 40_000
    if varied == "tokens":
        noise = log_exponentials(keys_of([7, 8], [3, 3]), torch.arange(count).unsqueeze(0)).T
    else:
        ramp, fixed = [*range(count)], [12] * count
        keys = keys_of(ramp, fixed) if varied == "seeds" else keys_of(fixed, ramp)
        noise = log_exponentials(keys, torch.tensor([[0, 1]]))
    uniform = -torch.expm1(-noise.double().exp())
    assert p_value(torch.histc(uniform[:, 0], 100, 0, 1), torch.full((100,), count / 100)) > 0.001
    for other in (uniform[:, 1], uniform[:, 0].roll(1)):  # the neighbour, and the next of the same
        cells = (uniform[:, 0] * 10).long() * 10 + (other * 10).long()
        assert p_value(torch.bincount(cells, minlength=100), torch.full((100,), count / 100)) > 0.001


def test_keys_depend_on_all_bits_of_seed_and_step() -> None:
    from vllm_flagscale.guidance.sampling import keys_of

    seeds = [0, 1, 2**31, 2**32, 2**63 - 1, -1]
    keys = keys_of([seed for seed in seeds for _ in range(2)], [0, 1] * len(seeds))
    assert len({tuple(key) for key in keys.tolist()}) == 2 * len(seeds)


def test_the_most_likely_numbers_are_not_coarse() -> None:
    from vllm_flagscale.guidance.sampling import keys_of, log_exponentials

    noise = log_exponentials(keys_of(range(40), [0] * 40), torch.arange(50_000).unsqueeze(0))
    smallest = noise.amin(1)
    assert len(set(smallest.tolist())) == 40
    assert (smallest < -8).all()
    assert noise.isfinite().all()
