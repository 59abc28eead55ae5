"""Ranges to skip, as users write them."""

from __future__ import annotations

import pytest

from flagscale.checks.steering import ranges_of, steering_remarks, touches


def test_one_range_or_several_may_be_given() -> None:
    assert ranges_of(None) == ()
    assert ranges_of("[10, 20]") == ((10, 20),)
    assert ranges_of("[[0, 1], [40, 50]]") == ((0, 1), (40, 50))
    assert ranges_of('["10", "20"]') == ((10, 20),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("10-20", "10-20 is not a list of ranges; write [first, end]"),
        ("[]", "is not a list of ranges"),
        ("7", "is not a list of ranges"),
        ("[20, 10]", "[20, 10] is not a range"),
        ("[10, 10]", "is not a range"),
        ("[-1, 10]", "is not a range"),
        ('["a", "b"]', '["a", "b"] is not a range'),
        ('["1.5", "2"]', '["1.5", 2] is not a range'),
        ("[1, 2, 3]", "[1, 2, 3] is not a range"),
        ("[[1, 2], 3]", "3 is not a range"),
        ("[[1, true]]", "[1, true] is not a range"),
    ],
)
def test_other_forms_are_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="with 0 <= first < end") as raised:
        ranges_of(text)
    assert says in str(raised.value)


def test_a_batch_touches_a_range_if_it_has_one_of_its_numbers() -> None:
    ranges = ((8, 10), (20, 21))
    assert [touches(ranges, first, first + 4) for first in (0, 4, 5, 9, 10, 16, 17, 20, 21)] == [
        *(False, False, True, True, False, False, True, True, False)
    ]


def test_ranges_after_the_end_are_noted() -> None:
    def noted(text: str, name: str = "skip_samples_range", **length: object) -> list[str]:
        return [what for _, what in steering_remarks({name: text, **length})]

    ten = {"train_iters": 10, "global_batch_size": 4}
    assert noted("[[3, 4], [39, 90]]", **ten) == noted("[10, 11]", **ten) == []
    what = "has no effect on [40, 50], [60, 61]: the training has samples 0 to 39"
    assert noted("[[39, 41], [40, 50], [60, 61]]", **ten) == [what]
    assert noted("[40, 50]", **ten, step_batch_size_schedule="0:2 8:4") == []
    assert noted("[40, 50]", train_samples=40) != noted("[40, 50]", train_samples=41) == []
    assert noted("[10, 12]", "skip_iters_range", **ten) == [
        "has no effect on [10, 12]: the training has iterations 0 to 9"
    ]
    assert noted("[10, 12]", "skip_iters_range", train_samples=40) == []
    assert noted("10-12", **ten) == []
