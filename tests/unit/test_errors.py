"""Messages: one line per mistake, where it is, how to fix it."""

from __future__ import annotations

from flagscale.errors import FlagScaleError, HostError, Problem, UserError, nearest


def test_a_problem_names_place_mistake_and_fix() -> None:
    assert str(Problem("it is wrong", "a.yaml:3: x.y", "fix it")) == "a.yaml:3: x.y: it is wrong\n    fix it"
    assert str(Problem("it is wrong")) == "it is wrong"


def test_a_user_error_holds_every_problem() -> None:
    error = UserError([Problem("one", "a"), Problem("two", "b")])
    assert [problem.what for problem in error.problems] == ["one", "two"]
    assert str(error) == "- a: one\n- b: two"
    assert UserError("plain").problems == (Problem("plain"),)


def test_problems_that_differ_only_in_their_place_are_one_message() -> None:
    same = [Problem("it is wrong", f"a.yaml:{line}: key{line}", "fix it") for line in (1, 2, 2)]
    error = UserError([same[0], Problem("other", "b"), *same[1:], Problem("it is wrong", "c")])
    assert error.messages == [
        "it is wrong (2 places)\n    fix it\n    a.yaml:1: key1\n    a.yaml:2: key2",
        "b: other",
        "c: it is wrong",
    ]
    assert len(error.problems) == 5
    assert str(error).count("\n- ") == 2


def test_exit_codes_distinguish_mistakes_from_failures() -> None:
    assert FlagScaleError("x").exit_code == 1
    assert HostError("x", []).exit_code == 1
    assert UserError("x").exit_code == 2


def test_a_host_error_lists_each_host_below_its_summary() -> None:
    error = HostError("did not start:", [Problem("refused", "h1"), Problem("started", "h2")])
    assert str(error).splitlines() == ["did not start:", "- h1: refused", "- h2: started"]


def test_nearest() -> None:
    assert nearest("num_layer", ["num_layers", "num_heads"]) == "did you mean `num_layers`?"
    assert nearest("zzz", ["b", "a"]) == "valid: a, b"
    assert nearest("zzz", [f"option{index}" for index in range(41)]) == ""
    assert nearest("zzz", []) == ""
