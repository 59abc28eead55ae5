"""The record of rollbacks beside the checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale.errors import UserError
from megatron.flagscale.steering.rollback import (
    FILE,
    Rollback,
    read_rollbacks,
    settled,
    still_left_out,
    write_rollbacks,
)


def test_a_record_is_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    assert read_rollbacks(folder) == ()
    rollbacks = [Rollback(4, "the loss is NaN", 16, 8), Rollback(9, "the loss is infinite", 36)]
    write_rollbacks(folder, rollbacks)
    assert read_rollbacks(folder) == (*rollbacks,)


def test_samples_are_known_once_a_checkpoint_is_loaded() -> None:
    earlier, new = Rollback(4, "the loss is NaN", 16, 8), Rollback(9, "the loss is NaN", 36)
    assert new.skipped == (36, 36)
    assert [one.skipped for one in settled([earlier, new], 24)] == [(8, 16), (24, 36)]
    # The newest checkpoint may be gone; another start changes nothing.
    assert [one.skipped for one in settled(settled([earlier, new], 24), 0)] == [(8, 16), (24, 36)]


def test_samples_that_are_still_left_out_are_ranges_without_gaps() -> None:
    rollbacks = [Rollback(0, "", end, first) for first, end in ((0, 4), (0, 8), (8, 12), (20, 24), (30, 40))]
    assert still_left_out(rollbacks, 0) == [(0, 12), (20, 24), (30, 40)]
    assert still_left_out(rollbacks, 24) == [(30, 40)]
    assert still_left_out([], 0) == []


@pytest.mark.parametrize("text", ["", "{}}", "[1]", '[{"iteration": 4}]', '[{"x": 1}]', "3"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text)
    with pytest.raises(
        UserError, match=r"is not a record of rollbacks: .*; remove it to train on all samples"
    ):
        read_rollbacks(tmp_path)
