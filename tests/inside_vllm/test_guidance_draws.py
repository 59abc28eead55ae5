"""The tokens that guided requests draw: both rows combined, distributions, and the noise behind them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.sample import logits_processor as first
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

from tests.inside_vllm.test_guidance_rows import CPU, NEVER, SAMPLINGS
from tests.unit.test_guidance_seams import engine
from vllm_flagscale.guidance.processor import GuidedProcessor
from vllm_flagscale.guidance.request import ROW, Row
from vllm_flagscale.guidance.sampling import Draws, combine, draw, keys_of, log_exponentials

DRAWS = 10_000


# ---- both rows combined
def test_masks_of_the_prompt_stay_and_nothing_is_left_that_is_not_finite() -> None:
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
    seeds = [0, 1, 2**31, 2**32, 2**63 - 1, -1]
    keys = keys_of([seed for seed in seeds for _ in range(2)], [0, 1] * len(seeds))
    assert len({tuple(key) for key in keys.tolist()}) == 2 * len(seeds)


def test_the_most_likely_numbers_are_not_coarse() -> None:
    noise = log_exponentials(keys_of(range(40), [0] * 40), torch.arange(50_000).unsqueeze(0))
    smallest = noise.amin(1)
    assert len(set(smallest.tolist())) == 40
    assert (smallest < -8).all()
    assert noise.isfinite().all()
