"""With which arguments the readers of pictures can continue where those of a checkpoint were."""

from __future__ import annotations

from typing import Any

import pytest

from flagscale.checks.loading import loading_violations, too_few
from flagscale.checks.recorded import CONTENT, record
from flagscale.checks.resume import Saved, resume_violations

SAVED: dict[str, Any] = {
    "data_parallel_size": 4,
    "num_workers": 2,
    "micro_batch_size": 4,
    "shuffle_buffer_size": 100,
    "max_samples_per_sequence": 100,
    "packing_buffer_size": 0,
}
NAME = "the checkpoint"
HAS = "the checkpoint has the places of 8 (data parallel size 4, `num_workers: 2`)"
ALLOWED: list[dict[str, Any]] = [
    {},
    {"data_parallel_size": 2, "num_workers": 4},
    {"data_parallel_size": 8, "num_workers": 1},
    {"data_parallel_size": 8, "num_workers": 0},
    {"micro_batch_size": 2},
    {"data_parallel_size": None, "num_workers": 4},
]
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    (
        {"data_parallel_size": 2},
        "num_workers",
        f"parallel size 2 with `num_workers: 2` reads with 4 readers, but {HAS}: use `num_workers: 4`, or",
    ),
    (
        {"data_parallel_size": 3, "num_workers": 0},
        "num_workers",
        f"reads with 3 readers, but {HAS}: use a data parallel size that divides 8 (1, 2, 4, 8), or set",
    ),
    (
        {"data_parallel_size": 1, "num_workers": 0},
        "num_workers",
        "reads with 1 reader, but the checkpoint has the places of 8",
    ),
    ({"micro_batch_size": 8}, "micro_batch_size", "use 4 or a divisor of it, or set `finetune: true`"),
    ({"micro_batch_size": 3}, "micro_batch_size", "`micro_batch_size` is 3, but the checkpoint was trained"),
    (
        {"shuffle_buffer_size": 0},
        "shuffle_buffer_size",
        "fits no other value: use 100, or set `finetune: true`",
    ),
    ({"packing_buffer_size": 50}, "packing_buffer_size", "was trained with 0, and its place"),
]


@pytest.mark.parametrize("changes", ALLOWED)
def test_the_same_readers_can_be_divided_otherwise(changes: dict[str, Any]) -> None:
    assert not [*loading_violations(NAME, SAVED, SAVED | changes)]


@pytest.mark.parametrize(("changes", "name", "what"), REFUSED)
def test_other_readers_are_refused(changes: dict[str, Any], name: str, what: str) -> None:
    ((found, text),) = loading_violations(NAME, SAVED, SAVED | changes)
    assert found == name
    assert what in text


@pytest.mark.parametrize(
    "changes",
    [{"seq_length": 1024}, {"several_images": "single"}, {"video_frames": 4}, {"chat_template": "vicuna"}],
)
def test_what_decides_which_samples_are_packed_stays(changes: dict[str, Any]) -> None:
    lengths = {"seq_length": 2048, "several_images": "tiled", "video_frames": 8, "chat_template": None}
    single, packed = SAVED | lengths, SAVED | lengths | {"packing_buffer_size": 8}
    assert not [*loading_violations(NAME, single, single | changes)]
    assert [name for name, _ in loading_violations(NAME, packed, packed | changes)] == [*changes]


def test_all_mistakes_are_reported() -> None:
    changes = {"num_workers": 3, "micro_batch_size": 8, "shuffle_buffer_size": 1}
    names = [name for name, _ in loading_violations(NAME, SAVED, SAVED | changes)]
    assert names == ["shuffle_buffer_size", "num_workers", "micro_batch_size"]


def test_a_training_on_text_has_no_readers() -> None:
    of_text = {name: SAVED[name] for name in ("data_parallel_size", "num_workers", "micro_batch_size")}
    assert not [*loading_violations(NAME, of_text, of_text | {"num_workers": 3})]


@pytest.mark.parametrize("switch", [{"finetune": True}, {CONTENT: "other data"}])
def test_another_beginning_needs_no_place(switch: dict[str, Any]) -> None:
    before = SAVED | {"data_path": ["pictures"], CONTENT: "these data"}
    saved = Saved(NAME, record(before, "these data"))
    now = before | {"num_workers": 3}
    assert [name for name, _ in resume_violations(saved, now)] == ["num_workers"]
    assert not [*resume_violations(saved, now | switch)]


@pytest.mark.parametrize("wrong", [None, "2", [2]])
def test_a_record_that_was_edited(wrong: Any) -> None:
    assert not [*loading_violations(NAME, SAVED | {"num_workers": wrong}, SAVED)]
    assert not [*loading_violations(NAME, SAVED | {"micro_batch_size": wrong}, SAVED)]


@pytest.mark.parametrize(
    ("ranks", "workers", "fits"), [(12, 0, True), (6, 2, True), (13, 0, False), (7, 2, False)]
)
def test_each_reader_needs_a_sample(ranks: int, workers: int, fits: bool) -> None:
    assert (too_few(12, ranks, workers) == "") == fits
