"""Overrides that Hydra's grammar refuses: plain words, and quotes that work."""

from __future__ import annotations

import re
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from flagscale.cli import main
from flagscale.config.grammar import override_problem

VALUES = [
    *(
        "pink & green",
        "it's",
        "a=b",
        "a(b",
        "a)b",
        "foo(bar)",
        "[1",
        "{a:1",
        "{a}",
        "漢字",
        "#1",
        "a;b",
        "<x>",
    ),
    *(
        "a!",
        "'x",
        '"x',
        "a'b'c",
        "range(a)",
        "int(x)",
        'a"b',
        "^=mlx5_0:1",
        "`date`",
        "x:[1",
        "a\nb",
        "1,2 3]",
    ),
]
JARGON = re.compile(
    r"\w+(Exception|Error)\b|viable|mismatched|token recognition|extraneous|EOF|missing EQUAL|hydra\.cc"
)


@pytest.mark.parametrize("value", VALUES)
def test_a_value_that_needs_quotes(value: str) -> None:
    problem = override_problem(f"++experiment.exp_name={value}")
    assert problem is not None
    assert problem.where == "command line: experiment.exp_name"
    assert problem.what.startswith(f"`{value}` cannot be read as a value")
    assert not JARGON.search(str(problem))
    (override,) = shlex.split(problem.hint.partition("for the shell: ")[2])
    key, _, _ = override.partition("=")
    assert key == "experiment.exp_name"
    read = OverridesParser.create().parse_override(override).value()
    assert getattr(read, "text", read) == value


def test_the_place_is_shown() -> None:
    assert "`pink & green` cannot be read as a value at `& green`" in str(
        override_problem("a.b=pink & green")
    )


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("pink", "needs the form `key=value`"),
        ("exp name=1", "`exp name` is not a valid key"),
        ("a..b=1", "`a..b` is not a valid key"),
        ("+++a=1", "is not a valid key"),
        ("é=1", "`é` is not a valid key"),
    ],
)
def test_a_key_that_is_wrong(override: str, says: str) -> None:
    problem = override_problem(override)
    assert says in str(problem)
    assert not JARGON.search(str(problem))


def test_a_secret_is_not_shown() -> None:
    problem = override_problem("experiment.envs.HF_TOKEN=hf & x")
    assert problem is not None
    assert "hf & x" not in str(problem)


def test_all_of_them_are_reported(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "experiment.exp_name=pink & green", "train.model.lr=1=2"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("2 mistakes")
    assert not JARGON.search(error)
    assert """'experiment.exp_name="pink & green"'""" in error


def test_the_advice_works(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, 'experiment.exp_name="pink & green"']) == 0
    assert capsys.readouterr().out.startswith("pink & green: 2 ranks")
