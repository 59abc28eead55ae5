"""Blanks in a file are reported in words, values that only look like one are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flagscale.config.blanks import blank_interpolation, blank_text
from flagscale.errors import Problem
from tests.unit.conftest import EXPERIMENT


@pytest.mark.parametrize(
    ("text", "blank"),
    [
        ("${data_path:??}", "${data_path:??}"),
        ("${data_path:?}", "${data_path:?}"),
        ("${data_path:??put it here}", "${data_path:??put it here}"),
        ("${hostfile??}", "${hostfile??}"),
        ("/data/${ a.name :?? }/x", "${ a.name :?? }"),
    ],
)
def test_a_blank_in_an_interpolation(text: str, blank: str) -> None:
    problem = blank_interpolation("train.data.data_path", text, "a.yaml:1")
    assert problem is not None
    assert problem.what == f"`{blank}` is a blank to fill in"
    assert "put the path of the data here" in problem.hint


@pytest.mark.parametrize("text", ["${a.b}", "${oc.env:HOME}", "${oc.env:X,y?}", "${a.b}?", "what??"])
def test_other_interpolations_are_no_blanks(text: str) -> None:
    assert blank_interpolation("train.load", text, "") is None


@pytest.mark.parametrize("text", ["xxxx", "XXXXX", "<x>", "<xxx>", " <xxxx> "])
def test_a_text_that_marks_a_blank(text: str) -> None:
    problem = blank_text("experiment.runner.hostfile", text, "a.yaml:1")
    assert problem is not None
    assert "remove the key to run on this host only" in problem.hint


@pytest.mark.parametrize("text", ["xxx", "x", "<s>", "<unk>", "xxxxy", "", "data/xxxx"])
def test_other_texts_are_values(text: str) -> None:
    assert blank_text("train.data.data_path", text, "") is None


@pytest.mark.parametrize("path", ["experiment.exp_name", "experiment.envs.A", "inference.generate.output"])
def test_free_text_is_never_a_blank(path: str) -> None:
    assert blank_text(path, "xxxx", "") is None


@pytest.mark.parametrize(
    ("key", "asks_for"),
    [
        ("train.tokenizer_path", "the tokenizer's folder"),
        ("train.checkpoint.load", "the folder of the checkpoints"),
        ("train.merge_file", "put the path here"),
        ("train.data.valid-data-path.1", "put the path here"),
        ("train.seed", "put the value here"),
    ],
)
def test_what_belongs_there(key: str, asks_for: str) -> None:
    problem = blank_text(key, "<xx>", "")
    assert problem is not None
    assert asks_for in problem.hint


def test_the_old_form_of_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    problem = blank_interpolation("experiment.runner.node_rank", "${env:RANK}", "a.yaml:1")
    assert problem == Problem(
        "`${env:RANK}` is no longer supported",
        "a.yaml:1",
        "write ${oc.env:RANK}, and set RANK in your shell",
    )
    monkeypatch.setenv("RANK", "0")
    problem = blank_interpolation("experiment.runner.node_rank", "${env:RANK}", "")
    assert problem is not None
    assert problem.hint == "write ${oc.env:RANK}"
    problem = blank_interpolation("experiment.runner.nnodes", "${env:NODES,1}", "")
    assert problem is not None
    assert problem.hint == "write ${oc.env:NODES,1}"


def test_a_blank_is_reported_once_and_its_key_is_unknown(mistakes: Callable[..., list[Problem]]) -> None:
    text = EXPERIMENT.replace("nproc_per_node: 4", 'nproc_per_node: "${ranks:??}"\n    hostfile: <xxx>')
    found = [(problem.where, problem.what) for problem in mistakes(text)]
    assert found == [
        ("config.yaml:9: experiment.runner.nproc_per_node", "`${ranks:??}` is a blank to fill in"),
        ("config.yaml:10: experiment.runner.hostfile", "`<xxx>` is a blank to fill in"),
    ]


def test_a_blank_whose_key_is_a_number() -> None:
    assert (
        str(blank_text("1.5", "xxxx", "here")) == "here: `xxxx` is a blank to fill in\n    put the value here"
    )
