"""The rules of several validation sets, and the names that sets get."""

from __future__ import annotations

from typing import Any

import pytest

from flagscale.checks.validation import set_names, validation_violations

SETS = {"multiple_validation_sets": True, "valid_data_path": ["a", "b"], "eval_interval": 10}
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"validation_set_names": ["a"]}, "`validation_set_names` needs `multiple_validation_sets: true`"),
    ({"validation_set_intervals": [10]}, "`validation_set_intervals` needs `multiple_validation_sets: true`"),
    (
        {"multiple_validation_sets": True},
        "`multiple_validation_sets` needs `valid_data_path`: the prefixes of the data sets to evaluate",
    ),
    (
        SETS | {"valid_data_path": ["1", "a", "2", "b"]},
        "the sets are evaluated separately; remove the weights or `multiple_validation_sets`",
    ),
    (
        SETS | {"validation_set_names": ["a"]},
        "1 values for the 2 data sets of valid_data_path; give one for each",
    ),
    (SETS | {"validation_set_names": ["a", "a"]}, "`a` is given twice"),
    (
        SETS | {"validation_set_intervals": [10]},
        "1 values for the 2 data sets of valid_data_path; give one for each",
    ),
    (
        SETS | {"validation_set_intervals": [10, 25]},
        "25 must be a multiple of eval_interval 10",
    ),
    (
        SETS | {"validation_set_intervals": [10, 0]},
        "0 must be a multiple of eval_interval 10",
    ),
    (
        SETS | {"validation_set_intervals": [1000, 1500], "eval_interval": None},
        "1500 must be a multiple of eval_interval 1000",
    ),
]


@pytest.mark.parametrize(("values", "says"), WRONG)
def test_a_broken_rule_is_reported(values: dict[str, Any], says: str) -> None:
    assert [what for _, what in validation_violations(values)] == [says]


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"valid_data_path": ["1", "a", "2", "b"]},
        SETS,
        SETS | {"validation_set_names": ["x", "y"], "validation_set_intervals": [10, 100]},
        {"multiple_validation_sets": True, "per_split_data_args_path": "f", "validation_set_names": ["x"]},
    ],
)
def test_what_is_supported_is_accepted(values: dict[str, Any]) -> None:
    assert [*validation_violations(values)] == []


@pytest.mark.parametrize(
    ("prefixes", "names"),
    [
        (["/data/web_text", "/data/code_text"], ["web_text", "code_text"]),
        (["/data/web/valid", "/data/code/valid"], ["web/valid", "code/valid"]),
        (["a", "b/a"], ["a", "b/a"]),
        (["a", "a"], ["a (1)", "a (2)"]),
        ([], []),
    ],
)
def test_each_set_has_its_own_name(prefixes: list[str], names: list[str]) -> None:
    assert set_names(prefixes) == names
