"""The demo with pictures: what its blind model learns from, and how answers are counted and shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import demo_serve, demo_vlm
from tools.datasets.pictures.drawing import KINDS, drawn
from tools.datasets.pictures_demo import SEED


def test_a_blank_picture_has_the_same_question_and_answer_and_shows_nothing() -> None:
    for kind in KINDS:
        for turn in range(4):
            seen, blank = drawn(kind, SEED, turn, 56), drawn(kind, SEED, turn, 56, blank=True)
            assert (seen.question, seen.answer) == (blank.question, blank.answer)
            assert len(blank.image.getcolors()) == 1
            assert len(seen.image.getcolors()) > 1


def test_the_pictures_to_ask_about_are_new(tmp_path: Path) -> None:
    asked = demo_vlm.new_pictures(tmp_path / "new", 8)
    assert {one.answer for one in asked} == {"one", "two", "three", "four"}
    from PIL import Image

    trained = {drawn("counts", SEED, turn, 56).image.tobytes() for turn in range(200)}
    assert all(Image.open(one.picture).tobytes() not in trained for one in asked)


def test_answers_are_counted_and_shown(tmp_path: Path) -> None:
    asked = demo_vlm.new_pictures(tmp_path, 5)
    for number, one in enumerate(asked):
        guessed = one.answer if number == 3 else "none"
        one.answers.update({demo_vlm.SEES: one.answer, demo_vlm.BLIND: guessed})
    assert [demo_vlm.right(asked, name) for name in (demo_vlm.SEES, demo_vlm.BLIND)] == [5, 1]
    demo_vlm.draw_answers(asked, tmp_path / "answers.png")
    assert (tmp_path / "answers.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("task", "whole"), [(demo_vlm.TASK, 400), (demo_serve.TASK, 160)])
def test_a_training_that_was_stopped_is_continued(task: Path, whole: int, tmp_path: Path) -> None:
    assert not demo_serve.is_trained(tmp_path, task)
    for iteration in (whole // 2, whole, 2 * whole):
        (tmp_path / "latest_checkpointed_iteration.txt").write_text(str(iteration))
        assert demo_serve.is_trained(tmp_path, task) == (iteration >= whole)
