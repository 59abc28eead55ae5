"""How many tokens a guided request may generate."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vllm_flagscale.guidance.capacity import Capacity

ROOMY = Capacity(max_model_len=256, max_num_seqs=8, blocks=1000, block_sizes=(32,))


@pytest.mark.parametrize(("prompt", "negative"), [(10, 100), (100, 10), (100, 100)])
def test_the_longer_prompt_limits_the_answer(prompt: int, negative: int) -> None:
    assert ROOMY.most_tokens(prompt, negative) == 156
    assert [*ROOMY.violations(prompt, negative)] == []


@pytest.mark.parametrize("blocks", range(2, 17))
@pytest.mark.parametrize("sizes", [(32,), (32, 16)])
def test_both_rows_fit_into_the_cache_at_their_end_and_one_token_more_would_not(
    blocks: int, sizes: tuple[int, ...]
) -> None:
    tight = replace(ROOMY, blocks=blocks, block_sizes=sizes)
    most = tight.most_tokens(40, 2)

    def blocks_at(tokens: int) -> int:
        return sum(-(-(length + tokens - 1) // size) for length in (40, 2) for size in sizes)

    if most < 1:
        assert blocks_at(1) > blocks
        assert any("KV cache" in one for one in tight.violations(40, 2))
    else:
        assert blocks_at(most) <= blocks
        assert most == 216 or blocks_at(most + 1) > blocks
        assert [*tight.violations(40, 2)] == []


def test_one_place_in_the_batch_is_too_few() -> None:
    (message,) = replace(ROOMY, max_num_seqs=1).violations(5, 5)
    assert "`max_num_seqs` to at least 2, not 1" in message


def test_each_prompt_that_leaves_no_room_is_named() -> None:
    prompt, negative = ROOMY.violations(256, 300)
    assert prompt.startswith("the prompt has 256 tokens")
    assert negative.startswith("the negative prompt has 300 tokens")


def test_a_request_that_never_fits_is_told_the_size_of_the_cache() -> None:
    (message,) = replace(ROOMY, blocks=4).violations(70, 40)
    assert "a prompt of 70 and a negative prompt of 40 tokens" in message
    assert "4 blocks of 32 tokens" in message
