"""Mistakes in files as Hydra reads them: all files at once, circles, and Hydra's own keys."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from flagscale import cli


def report(words: list[str], capfd: pytest.CaptureFixture[str], *more: str) -> str:
    """Return what `dryrun` of a configuration with mistakes prints; it writes nothing."""
    before = sorted(Path().rglob("*"))
    assert cli.main([*words, "action=dryrun", *more]) == 2
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err
    assert printed.out == ""
    assert sorted(Path().rglob("*")) == before
    return printed.err


def write(**texts: str) -> None:
    for name, text in texts.items():
        path = Path("conf", *name.split("__")).with_suffix(".yaml")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def test_the_mistakes_of_all_files_are_reported(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    write(config="defaults:\n- train: demo\n- base\nx: [\n", train__demo="a: 1\n b: 2\n", base="a: 1\na: 2\n")
    printed = report(words, capfd)
    assert printed.startswith("3 mistakes")
    for place in ("conf/config.yaml:5: ", "conf/train/demo.yaml:2: ", "conf/base.yaml:2: "):
        assert f"- {place}" in printed


def test_mistakes_of_files_and_of_the_command_line_are_reported_together(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    write(config="experiment: {a: 1, a: 2}\n")
    printed = report(words, capfd, "train.x=[1", "train.y={")
    assert printed.startswith("3 mistakes")
    for place in ("conf/config.yaml:1", "command line: train.x", "command line: train.y"):
        assert f"- {place}: " in printed


@pytest.mark.parametrize(
    ("files", "circle"),
    [
        ({"config": "defaults: [config]\n"}, "config -> config"),
        ({"config": "defaults: [config.yaml, _self_]\n"}, "config -> config"),
        ({"config": "defaults: [./config]\n"}, "config -> config"),
        ({"config": "defaults: [a]\n", "a": "defaults: [b]\n", "b": "defaults: [a]\n"}, "b -> a -> b"),
        (
            {
                "config": "defaults: [train: x]\n",
                "train__x": "defaults: [y]\n",
                "train__y": "defaults: [x]\n",
            },
            "train/y -> train/x -> train/y",
        ),
        ({"config": "defaults: [train: x]\n", "train__x": "defaults: [/train: x]\n"}, "train/x -> train/x"),
        (
            {"config": "defaults: [train: x]\n", "train__x": "defaults: [../config]\n"},
            "train/x -> config -> train/x",
        ),
    ],
)
def test_files_that_name_each_other(
    files: dict[str, str], circle: str, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    write(**files)
    assert f"the defaults lists form a circle: {circle}\n" in report(words, capfd)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("3", "hydra: a group of keys is expected here"),
        ("null", "hydra: a group of keys is expected here"),
        ("{verbose: {}}", "hydra.verbose: unknown key `verbose`"),
        ("{callbacks: {a: 3}}", "hydra.callbacks: unknown key"),
        ("{job: {env_copy: [NO_SUCH]}}", "hydra.job.env_copy: unknown key"),
        ("{mode: MULTIRUN}", "hydra.mode: unknown key"),
        ("{job_logging: 3}", "hydra.job_logging: unknown key"),
        ("{run: 3}", "hydra.run: a group of keys is expected here"),
        ("{run: {dri: x}}", "did you mean `dir`?"),
        ("{searchpath: 3}", "hydra.searchpath: input should be a valid list"),
        ("{searchpath: ['x://y']}", "input should be a folder"),
        ("{sweeper: 3}", "hydra.sweeper: a group of keys is expected here"),
        ("{sweeper: {_target_: os.abort}}", "hydra.sweeper: a plugin is chosen with `hydra/sweeper=NAME`"),
    ],
)
def test_hydras_own_keys_in_a_file(
    value: str, expected: str, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    file = Path("conf/config.yaml")
    file.write_text(f"{file.read_text()}hydra: {value}\n")
    line = len(file.read_text().splitlines())
    printed = report(words, capfd)
    assert printed.startswith("1 mistake")
    assert f"- conf/config.yaml:{line}: hydra" in printed
    assert expected in printed


@pytest.mark.parametrize("value", ["{run: {dir: '${experiment.exp_dir}/hydra'}}", "{run: null}", "{}"])
def test_hydras_own_keys_that_have_no_effect(value: str, words: list[str]) -> None:
    file = Path("conf/config.yaml")
    file.write_text(f"{file.read_text()}hydra: {value}\n")
    assert cli.main(words) == 0


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("hydra=3", "command line: hydra: a group of keys is expected here"),
        ("~hydra.job", "Hydra's own keys cannot be removed"),
        ("hydra.job=null", "command line: hydra.job: a group of keys is expected here"),
        ("hydra.launcher=null", "command line: hydra.launcher: a group of keys is expected here"),
        ("hydra.launcher.n_jobs=2", "hydra.launcher.n_jobs"),
        ("hydra.sweeper.x=2", "hydra.sweeper.x"),
        ("hydra.runtime=3", "command line: hydra.runtime: unknown key `runtime`"),
        ("hydra.verbose={}", "command line: hydra.verbose"),
        ("hydra.job.env_copy=[NO_SUCH]", "command line: hydra.job.env_copy: unknown key"),
        ("hydra.mode=X", "command line: hydra.mode: input should be 'RUN' or 'MULTIRUN'"),
        ("hydra.searchpath=[3]", "command line: hydra.searchpath"),
        ("hydra/launcher=absent", "hydra/launcher/absent"),
        ("=3", "command line: =3: an override needs the form `key=value`"),
        ("train=3", "command line: train: `3` is not the name of a file of the group `train`"),
        ("train=${hydra:job.num}", "command line: train: `${hydra:job.num}` is not the name of a file"),
        ("train=null", "command line: train: `null` is not the name of a file"),
        ("train=[demo,[1]]", "command line: train: `[demo,[1]]` is not the name of a file"),
        (f"train={'x' * 300}", f"command line: train: `{'x' * 200}` is not the name of a file"),
        (f"--config-name={'x' * 300}", "a name of a file has at most 200 characters"),
        (f"experiment.runner.hostfile={'x/' * 3000}", "hostfile not found"),
        ("hydra/launcher=[[1]]", "command line: hydra/launcher: `[[1]]` is not the name of a file"),
        ("experiment=[a]", "command line: experiment: "),
        (f"a={'9' * 5000}", "command line: a: a number of more than 4300 digits"),
        (f"a={'[' * 60}{']' * 60}", "command line: a: more than 50 levels of nesting"),
        ("experiment.envs=[A]", "command line: experiment.envs"),
    ],
)
def test_odd_overrides(
    override: str, expected: str, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    write(train__demo="a: 1\n")
    assert expected in report(words, capfd, override)


@pytest.mark.parametrize("folder", ["conf", "conf/train"])
def test_a_folder_that_cannot_be_read(
    folder: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    write(config="defaults: [train: demo]\n", train__other="a: 1\n")
    listed = os.listdir

    def denied(path: str) -> list[str]:
        if path == os.path.abspath(folder):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    # Tests may run as root, who may read everything.
    monkeypatch.setattr(os, "listdir", denied)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != os.path.abspath(folder))
    assert f"- {folder}: the folder cannot be read: Permission denied\n" in report(words, capfd)
