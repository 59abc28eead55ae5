"""Logits processors in both of vLLM's interfaces: one class, one answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flagscale_testing import forked_python
from tests.e2e.test_serve import has_vllm

pytestmark = [
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)"),
    pytest.mark.timeout(600),
]
ALL, CODES = [*range(12)], [6, 7, 8]


@pytest.fixture(scope="module")
def answers() -> Any:
    done = forked_python.python("vllm.engine.arg_utils", str(Path(__file__).with_name("counted_rows.py")))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_both_loaders_take_one_class(answers: Any) -> None:
    assert answers["one class"]


@pytest.mark.parametrize("interface", ["first", "second"])
def test_rows_are_masked_by_their_grid_and_count(answers: Any, interface: str) -> None:
    begun, swapped, alone = answers[interface]
    assert begun == [CODES, ALL, [0]]  # a code, anything, the end of the only line
    assert swapped == [ALL, [1], [3]]  # the end of the frame, the end of the text
    assert alone == [[1]]


def test_another_model_is_refused_at_the_start(answers: Any) -> None:
    assert answers["other model"] == "pictures need an Emu3 model; this one is `llama`"


def test_requests_that_cannot_become_a_picture_are_refused(answers: Any) -> None:
    right, ordinary, short, *wrong_grids, stop, two = answers["refused"]
    assert right == ordinary == ""
    assert short.startswith("`max_tokens` must be 6 for a picture of 16x8 pixels, not 5; picture and prompt")
    for wrong in wrong_grids:
        assert wrong.startswith("`image_grid` takes the height and the width of a picture in codes, not ")
    assert stop == "`stop` cannot be combined with a picture"
    assert two.count("cannot be combined") == 2
