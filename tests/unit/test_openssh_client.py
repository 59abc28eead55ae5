"""Where `ssh` finds the user's configuration if $HOME is not the account's home."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagscale.remote.openssh import client


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / ".ssh").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    client._config.cache_clear()
    yield tmp_path
    client._config.cache_clear()


def test_a_configuration_below_home_is_included(home: Path) -> None:
    option, path = client.config_files()
    assert option == "-F"
    text = Path(path).read_text()
    assert f'Include "{home}/.ssh/config"\n' in text
    assert f'UserKnownHostsFile "{home}/.ssh/known_hosts" "{home}/.ssh/known_hosts2"\n' in text


def test_a_system_without_files_in_memory_gets_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    _, in_memory = client.config_files()
    text = Path(in_memory).read_text()
    client._config.cache_clear()
    monkeypatch.delattr(os, "memfd_create")
    _, path = client.config_files()
    assert Path(path).read_text() == text
    client._FILES.close()
    assert not os.path.exists(path)


def test_a_home_that_cannot_be_entered_counts_as_one_without_configuration(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", f"/{'y' * 300}")  # for root, too
    assert client.config_files() == ()
