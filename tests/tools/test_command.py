"""How the command lines of the tools end."""

from __future__ import annotations

import pytest

from tools import command


def needs(name: str) -> int:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_package_of_an_extra_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert command.run(lambda: needs("openai.types")) == 2
    error = capsys.readouterr().err
    assert "`openai` is not installed" in error
    assert "'flagscale[serve]'" in error


@pytest.mark.parametrize("name", ["json.missing", "tools.missing"])
def test_a_missing_module_of_ours_is_a_bug_and_keeps_its_traceback(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        command.run(lambda: needs(name))
