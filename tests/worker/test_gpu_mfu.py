"""The benchmark of the share of peak: its arithmetic checked by hand, and a whole run on this machine."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from benchmarks.gpu_mfu import SIZES, Outcome, main, outcome


def test_flops_per_token_match_a_count_by_hand() -> None:
    size = replace(SIZES["tiny"], layers=2, hidden=8, heads=2, vocabulary=32, tokens=4)
    # Per layer: queries, keys, values and output 4 x 64, MLP 2 x 8 x 32. The vocabulary: 32 x 8.
    assert size.weights() == 2 * (4 * 64 + 2 * 8 * 32) + 32 * 8 == 1792
    # Attention per token: 4 pairs, products with keys and values, 8 multiply-adds each, three passes.
    attention = 2 * 4 * 2 * 8 * 2 * 3
    assert size.flops_a_token(causal=False) == 6 * 1792 + attention == 11520
    assert size.flops_a_token(causal=True) == 6 * 1792 + attention / 2


@pytest.mark.filterwarnings("ignore")
def test_the_causal_count_equals_megatrons() -> None:
    from megatron.training.training import num_floating_point_operations

    from megatron.flagscale.args import engine_parser

    size = SIZES["1.3b"]
    args = engine_parser().parse_args([])
    args.num_layers, args.hidden_size, args.ffn_hidden_size = size.layers, size.hidden, 4 * size.hidden
    args.num_attention_heads, args.kv_channels = size.heads, size.hidden // size.heads
    args.seq_length, args.padded_vocab_size = size.tokens, size.vocabulary
    counted = num_floating_point_operations(args, batch_size=3)
    assert counted == pytest.approx(3 * size.tokens * size.flops_a_token(causal=True), rel=1e-12)


def test_sizes_match_their_names() -> None:
    assert SIZES["1.3b"].weights() / 1e9 == pytest.approx(1.31, abs=0.01)
    assert SIZES["7b"].weights() / 1e9 == pytest.approx(6.65, abs=0.01)


def test_the_share_of_peak_is_given_if_the_peak_is_known() -> None:
    size = SIZES["1.3b"]
    # A share of 0.418 of an H100's peak, 989e12.
    tokens = 0.418 * 989e12 / size.flops_a_token(causal=False)
    found = Outcome("NVIDIA H100 80GB HBM3", 2, 1.0, 2 * tokens, 1)
    assert found.share(size, causal=False) == pytest.approx(0.418)
    assert (found.share(size, causal=True) or 0) < 0.418
    assert Outcome("NVIDIA H100 PCIe", 1, 1.0, tokens, 1).share(size, causal=False) is None
    assert Outcome("cpu", 1, 1.0, tokens, 1).share(size, causal=False) is None


def test_the_warm_up_is_not_counted() -> None:
    lines = [
        {
            "iteration": number,
            "iteration_ms": 9000.0 if number <= 5 else number,
            "tokens_per_s": number,
            "mem_bytes": 1,
        }
        for number in range(1, 9)
    ]
    found = outcome(lines, ranks=1)
    assert (found.step_seconds, found.tokens_per_s) == (0.007, 7)
    with pytest.raises(ValueError, match="no iteration after"):
        outcome(lines[:5], ranks=1)


@pytest.mark.slow
def test_the_whole_benchmark_on_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--size", "tiny", "--iterations", "8"]) == 0
    printed = capsys.readouterr().out
    assert "12 x layers x hidden x tokens (full) or half of it (causal)" in printed
    row = printed.splitlines()[-1]
    share = r"(-|[\d.]+%)"
    expected = rf"\| tiny \| 0.00 B \| 1 x .+ \| adam \| 2 x 2 x 32 \| [\d.]+ \| \d+ \| {share} \| {share} \|"
    assert re.match(expected, row), row
