"""Exit codes and messages that all tools share."""

from __future__ import annotations

import pytest

from tools import command


def needs(name: str) -> int:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_missing_package_is_reported_with_the_extra_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert command.run(lambda: needs("openai.types")) == 2
    error = capsys.readouterr().err
    assert "`openai` is not installed" in error
    assert "'flagscale[serve]'" in error


@pytest.mark.parametrize("name", ["json.missing", "tools.missing"])
def test_a_missing_module_of_our_own_is_a_bug_and_keeps_its_traceback(name: str) -> None:
    with pytest.raises(ModuleNotFoundError):
        command.run(lambda: needs(name))
