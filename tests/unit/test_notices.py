"""Notices about valid settings that may not do what their author expects, and that their advice works."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flagscale.cli import main


def noticed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[list[str], str]:
    """Return the notices of a dryrun, and what it printed."""
    code = main([*words, "action=dryrun"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return printed.err.splitlines(), printed.out


def write_envs(text: str) -> None:
    path = Path("conf/config.yaml")
    path.write_text(re.sub("  envs: .*\n", f"  envs:\n    A: {text}\n", path.read_text()))


@pytest.mark.parametrize(
    ("text", "code", "variable"),
    [
        ("/opt/lib:$LD_LIBRARY_PATH", "`$LD_LIBRARY_PATH`", "LD_LIBRARY_PATH"),
        ("\\${HOME}/x", "`${HOME}`", "HOME"),
        ("~/cache", "`~`", "HOME"),
        ("/a:~/b", "`~`", "HOME"),
        ("it's `date`", "a command in the value", ""),
        ("$(hostname)", "a command in the value", ""),
    ],
)
def test_shell_code_in_an_environment_value(
    text: str, code: str, variable: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_envs(text)
    (notice,), printed = noticed(capsys, *words)
    start = f"note: conf/config.yaml:8: experiment.envs.A: {code} is passed on as it is"
    assert notice.startswith(start)
    assert ("write `${oc.env:" + variable + "}`" in notice) == bool(variable)
    assert "write `export A=...` in experiment.cmds.before_start" in notice
    assert text.replace("\\", "").replace("'", "'\"'\"'") in printed


@pytest.mark.parametrize("text", ["a~b", "cost: 5$", "$", "'$ 1'", "user~", "64(x2)", "^=mlx5_0:1,mlx5_1:1"])
def test_a_value_that_no_shell_would_change(
    text: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_envs(f'"{text}"')
    assert noticed(capsys, *words)[0] == []


def test_the_value_of_this_machine_is_inserted_as_advised(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/usr/mine")
    write_envs("/opt/lib:${oc.env:LD_LIBRARY_PATH}")
    notices, printed = noticed(capsys, *words)
    assert notices == []
    assert "#   A=/opt/lib:/usr/mine\n" in printed


def test_an_environment_variable_that_is_written_as_a_key(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_envs("${HOME}/x")
    assert main(words) == 2
    assert "write ${oc.env:HOME}" in capsys.readouterr().err


def test_keys_about_other_hosts_have_no_effect_on_this_one(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"ssh_port": "2222", "connect_timeout": "5", "no_shared_fs": "true", "transport": "local"}
    more = [f"experiment.runner.{key}={value}" for key, value in keys.items()]
    notices, _ = noticed(capsys, *words, *more)
    assert sorted(re.findall(r"experiment\.runner\.(\w+): has no effect here", " ".join(notices))) == sorted(
        keys
    )
    Path("hosts").write_text("far slots=2\n")
    assert noticed(capsys, *words, *more, "experiment.runner.hostfile=hosts")[0] == []


def test_keys_of_torchrun_without_an_effect(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("hosts").write_text("near slots=2\nfar slots=2\n")
    more = ("start_method=fork", "master_addr=near", "hostfile=hosts", "per_node_task=true")
    notices, _ = noticed(capsys, *words, *(f"experiment.runner.{one}" for one in more))
    assert sorted(re.findall(r"experiment\.runner\.(\w+): has no effect: ", " ".join(notices))) == [
        "master_addr",
        "start_method",
    ]
