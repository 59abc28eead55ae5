"""Ranges to skip, as users write them."""

from __future__ import annotations

import pytest

from flagscale.checks.steering import ranges_of, touches


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
