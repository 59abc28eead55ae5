"""The fit of the time model's constants: it finds what made the times, and never sees the source left out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import fit_constants, fit_halves
from benchmarks.estimate import DATA
from benchmarks.measured_rows import Row, read_rows
from flagscale.planner.time.constants import Constants, constants, constants_table
from flagscale.planner.time.step_time import step_time
from flagscale.planner.training import Training
from tests.unit.trainings import shape, training

JOBS = (training(layers=8), training(layers=8, tp=8), training(layers=8, sequence=512, micro_batches=2))
EXPERTS = (training(model=shape(4, experts=8), dp=8, ep=8), training(model=shape(4, experts=8)))


def row(job: Training, source: str, values: Constants, kind: str = "dense") -> Row:
    seconds = step_time(job, values).seconds
    return Row("", "", source, "A", "H100", "", "", {"time": seconds}, copies=(job,), kind=kind)


def rows(values: Constants, source: str) -> list[Row]:
    dense = [row(job, source, values) for job in JOBS]
    return [*dense, *(row(job, source, values, "MoE") for job in EXPERTS)]


def start() -> Constants:
    return Constants(**{name: one["start"] for name, one in constants_table()["meanings"].items()})


def test_the_fit_finds_constants_that_explain_the_times() -> None:
    true = replace(start(), gemm_share=0.6, launch_s=6e-5, grouped_share=0.8)
    groups = fit_constants.grouped(rows(true, "vtrain"))
    found = fit_constants.fit(groups, start())
    assert fit_constants.loss(groups, start()) > 0.1
    assert fit_constants.loss(groups, found) < 0.02
    assert found.gemm_share == pytest.approx(0.6, rel=0.1)
    # What is not fitted stays.
    assert found.bus_share == start().bus_share


def test_each_source_is_left_out_once() -> None:
    slow, fast = replace(start(), gemm_share=0.55), replace(start(), gemm_share=0.85)
    table = fit_constants.fitted_table(
        [*rows(slow, "vtrain"), *rows(fast, "mbridge"), *rows(fast, "mlm")], report=lambda line: None
    )
    assert table["without"].keys() == {"vtrain", "mbridge"}
    assert table["without"]["mbridge"]["gemm_share"] == pytest.approx(0.55, rel=0.1)
    assert table["without"]["vtrain"]["gemm_share"] == pytest.approx(0.85, rel=0.1)
    assert table["all"].keys() == constants().__dict__.keys()


def test_a_row_that_nothing_explains_counts_little() -> None:
    good = rows(start(), "vtrain")
    wrong = replace(good[0], measured={"time": 1000 * good[0].measured["time"]})
    groups = fit_constants.grouped([*good, wrong])
    assert fit_constants.loss(groups, start()) < fit_constants.CAP
    assert fit_constants.grouped([replace(good[0], reason="not published: time")]) == {}


def test_halves_share_no_group() -> None:
    first, second = fit_halves.halves(read_rows(DATA))
    groups = [{(row.source, row.group) for row in half} for half in (first, second)]
    assert not groups[0] & groups[1]
    assert abs(len(groups[0]) - len(groups[1])) <= 1
    assert {row.source for row in (*first, *second)} <= {*fit_constants.ENGINE}
