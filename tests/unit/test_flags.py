"""Flags on the command line: their values, their places, and what they name."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale import cli


def test_both_forms_of_the_config_path_mean_the_current_directory(words: list[str]) -> None:
    assert cli.main(["--config-path=conf", *words[2:]]) == 0
    assert cli.main(["-cp", "conf", "-cn", "config"]) == 0


@pytest.mark.parametrize(
    "line", [("action=dryrun", "-cp"), *((flag, "action=dryrun") for flag in ("--package", "-cn", "--cfg"))]
)
def test_a_flag_without_its_value_takes_no_override_for_it(
    line: tuple[str, str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for given in (line, line[::-1]) if "-cp" not in line else (line,):  # a path may contain `=`
        assert cli.main([*words, *given]) == 2
        assert ": this flag needs a value" in capsys.readouterr().err


def test_a_flag_whose_value_can_be_left_out(words: list[str]) -> None:
    for line in ([*words, "action=dryrun", "--info"], [*words, "-i", "action=dryrun"]):
        assert cli.main(line) == 0


def test_flags_may_stand_between_overrides(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Hydra's parser refuses that."""
    flags, overrides = words[:4], words[4:]
    assert [word.startswith("-") for word in flags] == [True, False] * 2
    assert cli.main(["action=dryrun", *flags[:2], *overrides, *flags[2:], "experiment.exp_name=between"]) == 0
    assert "between" in capsys.readouterr().out


def test_the_shell_completes_only_what_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--shell-completion", "install=bash"]) == 0
    assert "complete" in capsys.readouterr().out
    for words in (["-sc"], ["--shell-completion", "+a=["], ["-sc", "experiment=!!str [a]", "install=bash"]):
        assert cli.main(words) == 2
        assert "command line: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (["--config-path=absent"], "- command line: --config-path: no such folder: absent\n"),
        (["--config-path", "loop"], "- command line: --config-path: no such folder: loop\n"),
        (["--config-path", "conf/config.yaml"], "write --config-path conf --config-name config\n"),
        ([], "- command line: no folder is given\n    add --config-path FOLDER"),
        (["--config-path", "conf", "--config-path", "absent"], "no such folder: absent\n"),
    ],
)
def test_a_wrong_folder_is_named(
    place: list[str], expected: str, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    Path("loop").symlink_to("loop")
    assert cli.main([*place, "--config-name", "config", "action=dryrun"]) == 2
    assert expected in capfd.readouterr().err


@pytest.mark.parametrize(
    ("folder", "name"),
    [("conf", "./config"), (".", "conf/config"), ("conf", "conf/config.yaml"), ("conf", "../conf/config")],
)
def test_the_name_of_the_file_has_no_folder(
    folder: str, name: str, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["--config-path", folder, "--config-name", name, "action=dryrun"]) == 2
    assert "write --config-path conf --config-name config\n" in capfd.readouterr().err


@pytest.mark.parametrize(
    "flag", ["--package", "-p", "--pack", "--cfg", "--experimental-rerun", "--config-dir"]
)
def test_a_flag_without_a_value_does_not_take_the_action_for_it(
    flag: str, words: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "_perform", lambda config: pytest.fail("an action was performed"))
    assert cli.main([*words, "action=dryrun", flag]) == 2
    assert "this flag needs a value" in capfd.readouterr().err


def test_flags_of_no_effect(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    for more in (["--package", "train"], ["--resolve"]):
        assert cli.main([*words, *more]) == 2
        assert f"- command line: {more[0]}: this flag has no effect without --cfg" in capfd.readouterr().err
    assert cli.main([*words, "--info"]) == 0
    assert cli.main([*words, "--cfg", "job", "--package", "train", "--resolve"]) == 0


def test_a_flag_that_is_cut_short(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path().rglob("*"))
    assert cli.main([*words, "--multi", "experiment.exp_dir=a,b"]) == 0
    assert sorted(Path().rglob("*")) == before


def test_a_package_that_does_not_exist_is_a_users_mistake(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*words, "--cfg", "job", "--package", "absent"]) == 2
    assert "'absent' not found" in capfd.readouterr().err
