"""Jobs of a sweep never share a run directory, and the advice of the refusal works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from flagscale import actions
from flagscale.cli import main
from flagscale.plan.prepare import Request

SWEEP = ["-m", "train.model.num_layers=2,4"]  # after other overrides, too


@pytest.mark.parametrize("action", ["run", "test", "dryrun"])
def test_a_sweep_with_one_run_directory_starts_nothing(
    action: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(request: Request) -> int:
        raise AssertionError("a job was started")

    monkeypatch.setattr(actions, action, fail)
    assert main([*words, *SWEEP, f"action={action}"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    one, other = ("train.model.num_layers=2", "train.model.num_layers=4")
    says = f"the jobs `{one}` and `{other}` of this sweep have the same run directory {tmp_path}/out"
    assert says in printed.err
    assert not (tmp_path / "out").exists()


def test_a_link_to_the_same_folder_is_the_same_folder(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to("out")
    assert main([*words, "-m", "experiment.exp_dir=out,link"]) == 2
    assert "have the same run directory" in capsys.readouterr().err
    assert main([*words, "-m", "experiment.exp_dir=out,link", "action=query"]) == 3


@pytest.mark.slow
def test_the_advice_works_for_every_action(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, *SWEEP]) == 2
    advice = re.search(r"all later actions: (.*)", capsys.readouterr().err)
    assert advice
    (override,) = shlex.split(advice[1])
    assert main([*words, *SWEEP, override]) == 0
    assert re.findall(r"^# .*/out/(\d)/config\.yaml$", capsys.readouterr().out, re.MULTILINE) == ["0", "1"]
    assert [path.name for path in Path().iterdir()] == ["conf"]
    assert main([*words, *SWEEP, override, "action=query"]) == 3
    assert re.findall(r"nothing was started in .*/out/(\d)\n", capsys.readouterr().err) == ["0", "1"]
    assert main([*words, *SWEEP, override, "action=stop"]) == 0


def test_the_swept_key_in_the_run_directory(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    own = "experiment.exp_dir=out/${experiment.envs.VERSION}"
    assert main([*words, "-m", "experiment.envs.VERSION='1.10','1.1'", own]) == 0
    assert re.findall(r"out/(\S+)/config\.yaml$", capsys.readouterr().out, re.MULTILINE) == ["1.10", "1.1"]


def test_mistakes_of_a_job_are_reported_by_that_job(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "-m", "experiment.exp_dir=a,b", "train.num_layer=1"]) == 2
    assert capsys.readouterr().err.count("1 mistake") == 2


def test_an_interrupt_ends_the_whole_sweep(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Request] = []

    def interrupted(request: Request) -> int:
        asked.append(request)
        return 130

    monkeypatch.setattr(actions, "test", interrupted)
    own = "experiment.exp_dir=out/${hydra:job.num}"
    assert main([*words, *SWEEP, own, "action=test"]) == 130
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("sweep", "expected"),
    [
        (["train.model.seed=range(1,100000000)"], "train.model.seed: this sweep has more than 10000 jobs"),
        (["train.model.seed=range(0,1e400)"], "train.model.seed: this sweep has more than 10000 jobs"),
        (["a=range(0,200)", "b=range(1,0,-0.01)"], "a, b: this sweep has more than 10000 jobs"),
        (["train.model.seed=range(0,10,0)"], "train.model.seed: this range has no numbers"),
        (["train.model.seed=range(0,10,-1)"], "train.model.seed: this range has no numbers"),
        (["train.model.seed=range(0,nan)"], "train.model.seed: this range has no numbers"),
        (["train.model.seed=glob(x*)"], "command line: this sweep has no jobs"),
    ],
)
def test_a_sweep_without_a_first_job(
    sweep: list[str], expected: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "-m", *sweep]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize("broken", ["experiment.envs.A=${absent}", "action=${absent}"])
def test_an_override_that_cannot_be_resolved(
    broken: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "-m", "experiment.exp_dir=a,b", broken]) == 2
    assert capsys.readouterr().err.count("Interpolation key 'absent' not found") == 2


def test_a_value_that_is_given_twice(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "-m", "experiment.exp_dir=a,a"]) == 2
    assert "the jobs `experiment.exp_dir=a` and `experiment.exp_dir=a`" in capsys.readouterr().err
