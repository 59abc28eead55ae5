"""An estimate's interval is that of its class, or a wider one if the class has few measurements."""

from __future__ import annotations

from typing import Any

import pytest

from flagscale.checks.hetero.layout import HeteroLayout, Mesh
from flagscale.planner.chips import find_chip
from flagscale.planner.intervals import (
    CLASSES,
    QUANTITIES,
    class_of,
    error_table,
    factors,
    factors_of,
    interval,
)
from flagscale.planner.model_shape import ModelShape
from flagscale.planner.training import Block, Training


def job(meshes: tuple[Mesh, ...] = (), chips: tuple[str, ...] = ("H100",), experts: int = 0) -> Training:
    model = ModelShape(64, 4, 4, 16, 256, 1000, (experts > 0,) * 4, experts=experts)
    blocks = tuple(Block(find_chip(name), 1) for name in chips)
    return Training(model, HeteroLayout(meshes or (Mesh(layers=((4,),)),)), blocks, 32, 8, 1024)


def entry(n: int, low: float, high: float) -> dict[str, Any]:
    return {"uncalibrated": {"n": n, "low": low, "high": high}}


def test_a_job_is_of_the_most_special_class_that_applies() -> None:
    assert class_of(job()) == "dense"
    assert class_of(job((Mesh(pp=2, layers=((1, 1), (1, 1))),))) == "VPP"
    assert class_of(job((Mesh(pp=2, layers=((1, 1), (1, 1))),), experts=4)) == "MoE"
    assert class_of(job((Mesh(cp=2, layers=((4,),)),), experts=4)) == "CP"
    meshes = (Mesh(cp=2, layers=((2,),)), Mesh(dp=2, layers=((2,),)))
    assert class_of(job(meshes, ("H100", "A100-80"), experts=4)) == "mixed"
    assert class_of(job(meshes, ("H100", "H100"))) == "CP"


def test_a_class_with_few_rows_takes_the_interval_of_all() -> None:
    table = {"classes": {"CP": {"time": entry(5, 0.9, 1.1)}, "all": {"time": entry(50, 0.5, 2)}}}
    assert factors(table, "CP", "time", is_calibrated=False) == (0.5, 2)
    table["classes"]["CP"]["time"]["uncalibrated"]["n"] = 12
    assert factors(table, "CP", "time", is_calibrated=False) == (0.9, 1.1)
    assert factors(table, "CP", "time", is_calibrated=True) == (0.9, 1.1)  # nothing calibrated was measured


def test_reserved_memory_is_at_least_as_uncertain_as_allocated_memory() -> None:
    rows = {"allocated": entry(50, 0.8, 1.1), "reserved": entry(20, 0.9, 1.2)}
    table = {"classes": {"dense": rows}}
    assert factors(table, "dense", "reserved", is_calibrated=False) == (0.8, 1.2)
    assert factors(table, "dense", "device", is_calibrated=False) == (0.8, 1.1)


def test_factors_leave_out_one_in_forty_on_each_side() -> None:
    assert factors_of([1.2, 0.9, 1.0]) == (0.9, 1.2)
    assert factors_of([float(n) for n in range(1, 81)]) == (3.0, 78.0)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("is_calibrated", [False, True])
def test_every_estimate_has_an_interval(quantity: str, is_calibrated: bool) -> None:
    low, high = interval(job(), quantity, is_calibrated)
    assert 0 < low < high
    assert low < 1.2
    assert {*error_table()["classes"]} <= {*CLASSES, "all"}
