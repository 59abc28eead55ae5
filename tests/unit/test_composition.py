"""A command composes its configuration once, with the same result as Hydra's main function."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale import cli


def test_one_composition_holds_what_hydra_itself_composes(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("conf/config.yaml")
    file.write_text("hydra: {sweep: {dir: 'all/${hydra.job.config_name}'}}\n" + file.read_text())
    names = ("runtime.output_dir", "runtime.cwd", "run.dir", "output_subdir", "job.name", "job.chdir", "mode")
    names = (*names, "sweep.dir", "hydra_help.template")
    inserted = [f"experiment.envs.V{index}=${{hydra:{name}}}" for index, name in enumerate(names)]
    printed = []
    for own_key in ([], ["hydra.job.chdir=false"]):  # with a key of its own, Hydra does everything
        code = cli.main([*words, *own_key, *inserted, "action=dryrun"])
        printed.append((code, *capsys.readouterr()))
    assert printed[0] == printed[1]


def test_files_that_ask_hydra_for_more_are_left_to_it(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    used, whole = [], cli.hydra.main
    monkeypatch.setattr(cli.hydra, "main", lambda **options: used.append(options) or whole(**options))
    assert cli.main([*words, "action=query"]) == 3
    assert not used
    Path("conf/hydra/callbacks").mkdir(parents=True)
    callback = "mine:\n  _target_: hydra.experimental.callback.Callback\n"
    Path("conf/hydra/callbacks/mine.yaml").write_text(callback)
    file = Path("conf/config.yaml")
    file.write_text("defaults: [_self_, {override hydra/callbacks: mine}]\n" + file.read_text())
    assert cli.main([*words, "action=query"]) == 3, capsys.readouterr().err
    assert used


@pytest.mark.parametrize("group", ["job_logging", "hydra_logging"])
def test_a_way_of_logging_that_is_not_installed_does_not_matter(
    group: str, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path("conf/config.yaml")
    file.write_text(f"defaults: [_self_, {{override hydra/{group}: colorlog}}]\n" + file.read_text())
    assert cli.main([*words, "action=query"]) == 3
    assert "nothing was started in" in capsys.readouterr().err
