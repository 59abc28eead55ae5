"""Five shrunk examples have the losses in tests/golden/losses, and a changed computation has others.

`python -m benchmarks.golden_losses --write` writes the files; read the differences before committing.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale_testing.golden_changes import SAME, UNNOTICED, WRONG, differences
from flagscale_testing.golden_losses import CASES, FOLDER, TOLERANCE, arguments_of, difference, golden
from flagscale_testing.ranks.forked import Curve

pytestmark = pytest.mark.timeout(900)  # the first test of each fixture waits for all its trainings
AGAIN = {name: f"{name}, again" for name in CASES}
FAST = ("rotary base x 2", "learning rate + 1%", "eight tokens not in the loss")
GATHERED = "mixtral_8x7b, another layout"
"""Grouped experts on two data parallel ranks, whose weights are gathered during the forward pass."""
SLOW = [name for name in SAME if name not in (*AGAIN.values(), GATHERED)]


def test_a_file_belongs_to_each_case() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_the_arguments_are_those_of_the_file(name: str) -> None:
    assert golden(name)["arguments"] == arguments_of(CASES[name]), "the example or `shrunk` has changed"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    return differences(
        {**SAME, **WRONG}, [*AGAIN.values(), GATHERED, *FAST], tmp_path_factory.mktemp("golden")
    )


@pytest.mark.parametrize("name", CASES)
def test_the_losses_are_those_of_the_file(name: str, found: dict[str, float]) -> None:
    assert found[AGAIN[name]] <= TOLERANCE, f"versions of the file: {golden(name)['versions']}"


def test_gathered_weights_of_grouped_experts_are_waited_for(found: dict[str, float]) -> None:
    assert found[GATHERED] <= TOLERANCE


@pytest.mark.parametrize("name", FAST)
def test_a_changed_computation_is_noticed(name: str, found: dict[str, float]) -> None:
    assert found[name] > TOLERANCE


@pytest.mark.slow
def test_every_other_way_to_compute_the_same_passes(tmp_path: Path) -> None:
    measured = differences(SAME, SLOW, tmp_path)
    assert {name: one for name, one in measured.items() if one > TOLERANCE} == {}


@pytest.mark.slow
def test_all_but_the_smallest_changes_are_noticed(tmp_path: Path) -> None:
    measured = differences(WRONG, [name for name in WRONG if name not in FAST], tmp_path)
    assert {name for name, one in measured.items() if one <= TOLERANCE} == {*UNNOTICED}


def test_the_largest_difference_counts_and_no_step_may_be_missing() -> None:
    norms = (1.0, 1.0)
    assert difference(Curve((4.0, 3.0), norms), (4.0, 2.0)) == 0.5
    assert difference(Curve((4.0, 1.0), norms), (4.0, 2.0)) == 0.5
    broken = Curve((4.0, float("nan")), norms)
    for curve in (broken, Curve((4.0,), norms), Curve((), ()), Curve((4.0, 2.0), norms, "exit code 1")):
        assert difference(curve, (4.0, 2.0)) == float("inf")
