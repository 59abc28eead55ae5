"""Measured tables of a chip: exact where measured, between and outside as stated; wrong rows are named."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from flagscale.errors import UserError
from flagscale.planner.chips import chip_of
from flagscale.planner.curves import attention_flop, curves_of

SIZES = (64, 1024, 4096)


def seconds(m: int, n: int, k: int) -> float:
    """A chip of 1 TFLOP/s with 10 us per call."""
    return 2 * m * n * k / 1e12 + 1e-5


GEMM = [[*sizes, seconds(*sizes)] for sizes in itertools.product(SIZES, repeat=3)]
SENDS = [[1024, 1e-5], [1 << 20, 1.1e-4], [1 << 26, 6.72e-3]]


def test_a_measured_size_is_returned_as_measured() -> None:
    curves = curves_of("one", {"gemm": {"bfloat16": GEMM}})
    for m, n, k, measured in GEMM:
        assert curves.gemm_s("bfloat16", m, n, k) == pytest.approx(measured, rel=1e-9)
    assert curves.gemm_s("float16", 64, 64, 64) is None


@pytest.mark.parametrize("sizes", [(2048, 2048, 2048), (512, 4096, 3000), (100, 90, 4000)])
def test_other_sizes_lie_between_the_measured_ones(sizes: tuple[int, int, int]) -> None:
    found = curves_of("one", {"gemm": {"bfloat16": GEMM}}).gemm_s("bfloat16", *sizes)
    assert found is not None
    assert seconds(*sizes) * 0.7 < found < seconds(*sizes) * 2


def test_outside_the_table_the_rate_is_that_of_its_edge() -> None:
    curves = curves_of("one", {"gemm": {"bfloat16": GEMM}})
    edge, larger = (curves.gemm_s("bfloat16", 4096, 4096, k) for k in (4096, 4 * 4096))
    assert edge
    assert larger == pytest.approx(4 * edge)


def test_sizes_that_took_too_long_to_measure_have_the_rate_of_the_nearest() -> None:
    curves = curves_of("one", {"gemm": {"float32": [row for row in GEMM if row[:3] != [4096, 4096, 4096]]}})
    nearest = 2 * 4096 * 4096 * 1024 / seconds(4096, 4096, 1024)
    assert curves.gemm_s("float32", 4096, 4096, 4096) == pytest.approx(2 * 4096**3 / nearest)


def test_groups_and_attention_are_read_by_direction() -> None:
    curves = curves_of(
        "one",
        {
            "grouped_gemm": {"bfloat16": [[8, 128, 256, 512, 0.5]]},
            "attention": {"bfloat16": [[1024, 8, 64, 0.1, 0.3], [2048, 8, 64, 0.4, 1.2]]},
        },
    )
    assert curves.grouped_s("bfloat16", 8, 128, 256, 512) == pytest.approx(0.5)
    assert curves.attention_s("bfloat16", 1024, 8, 64) == pytest.approx(0.1)
    assert curves.attention_s("bfloat16", 2048, 8, 64, is_backward=True) == pytest.approx(1.2)
    # Twice the heads than measured, at the same rate.
    assert curves.attention_s("bfloat16", 1024, 16, 64) == pytest.approx(0.2)
    assert attention_flop(1024, 8, 64) * 2.5 == attention_flop(1024, 8, 64, is_backward=True)


def test_a_collective_takes_the_time_of_its_bytes_and_ranks() -> None:
    reduced = {"2": [[1024, 1e-4], [1 << 20, 2e-4]]}
    curves = curves_of("one", {"collectives": {"all_reduce": reduced, "send": {"2": SENDS}}})
    assert curves.collective_s("all_reduce", 2, 16) == 1e-4
    assert curves.collective_s("all_reduce", 2, 1 << 20) == pytest.approx(2e-4)
    # Beyond the largest message, more bytes take as long as those between the smallest and the largest.
    assert curves.collective_s("all_reduce", 2, 1 << 22) == pytest.approx(5e-4, rel=1e-3)
    # 4 ranks: 3/4 of the bytes instead of 1/2 leave each, and the latency is that of two rounds.
    assert curves.collective_s("all_reduce", 4, 1 << 20) == pytest.approx(1e-4 * 1.5 + 2e-4)
    assert curves.collective_s("send", 8, 1 << 20) == pytest.approx(1.1e-4)
    assert curves.collective_s("all_gather", 2, 16) is None
    assert curves.collective_s("all_reduce", 1, 16) is None


def test_more_bytes_never_take_less_time() -> None:
    disturbed = {"2": [[4096, 3e-4], [1024, 9e-4], [65536, 5e-4]]}
    curves = curves_of("one", {"collectives": {"all_gather": disturbed}})
    assert curves.collectives["all_gather"][2] == [(1024, 3e-4), (4096, 3e-4), (65536, 5e-4)]


def test_a_chip_without_published_figures_has_the_measured_ones() -> None:
    measured = {
        "gemm": {"float32": GEMM},
        "collectives": {"send": {"2": SENDS}},
        "hbm_gb_s": 20,
        "memory_gib": 4,
    }
    chip = chip_of("own", {"intra_node": {"world": 2}, "measured": measured})
    assert chip.flop_s["float32"] == pytest.approx(2 * 4096**3 / seconds(4096, 4096, 4096))
    assert chip.inside.bytes_s == pytest.approx(1e10, rel=0.01)
    assert chip.inside.latency_s == 1e-5
    assert (chip.per_node, chip.hbm_bytes_s, chip.memory_bytes) == (2, 20e9, 4 * 2**30)


@pytest.mark.parametrize(
    ("measured", "message"),
    [
        ({"gemm": {"float32": [[1, 2, 3]]}}, "`measured.gemm.float32[0]` of chip `own` is [1, 2, 3], not 4"),
        ({"gemm": {"float32": [[1, 2, 3, 0]]}}, "not 4 positive numbers"),
        ({"gemm": {"float32": [[1, 2, 3, True]]}}, "not 4 positive numbers"),
        ({"gemm": {"float32": 3}}, "`measured.gemm.float32` of chip `own` is not a list of rows"),
        ({"gemm": [1]}, "`measured.gemm` of chip `own` has no precisions"),
        ({"collectives": {"reduce": {}}}, "is not one of all_reduce, all_gather"),
        (
            {"collectives": {"send": {"1": SENDS}}},
            "`measured.collectives.send.1` of chip `own`: not a number",
        ),
        ({"collectives": {"send": {"2": [[1, None]]}}}, "[1, None], not 2 positive numbers"),
    ],
)
def test_a_wrong_table_is_named(measured: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as raised:
        chip_of("own", {"measured": measured})
    assert message in str(raised.value)


def test_all_wrong_rows_are_reported_at_once() -> None:
    with pytest.raises(UserError) as raised:
        curves_of("own", {"gemm": {"float32": [[1], [2, 2, 2, 2], [3]]}, "attention": {"float32": [[0]]}})
    assert len(raised.value.problems) == 3
