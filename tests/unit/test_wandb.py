"""Mode and key of a training that logs to W&B, for hosts without the user's environment and login."""

from __future__ import annotations

from pathlib import Path

import pytest

from flagscale.config.schema import Environment
from flagscale.engines.megatron.wandb import Login, login_of
from tests.unit.test_megatron_adapter import Build

OFFLINE = {"WANDB_MODE": "offline"}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and an environment without any login."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_job_without_a_key_logs_offline_and_says_how_to_log_online(build: Build) -> None:
    job = build({"wandb_project": "p"})
    assert (job.role.env, job.secrets, job.packages) == (OFFLINE, {}, ("wandb",))
    (notice,) = job.notices
    assert notice == (
        "train.wandb_project: W&B logs offline because there is no API key; to log online, set wandb_api_key "
        "or experiment.envs.WANDB_API_KEY, or run `wandb login` on this machine"
    )


def test_a_job_without_a_project_needs_nothing(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "sk-1")
    job = build()
    assert (job.role.env, job.secrets, job.packages, job.notices) == ({}, {}, (), ())


def test_a_configured_key_is_used_as_it_is(build: Build) -> None:
    job = build({"wandb_project": "p", "wandb_api_key": "sk-1"})
    assert (job.role.env, job.secrets, job.notices) == ({}, {"WANDB_API_KEY": "sk-1"}, ())
    assert login_of({}, Environment(WANDB_API_KEY="sk-2")) == Login()
    per_host = Environment(node_specific={"node1": {"WANDB_MODE": "online"}})
    assert login_of({"WANDB_API_KEY": "sk-1"}, per_host) == Login()


def test_the_environment_of_the_launcher_reaches_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "sk-1")
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    expected = {"WANDB_MODE": "online", "WANDB_BASE_URL": "https://wandb.example.com"}
    assert login_of({}, Environment()) == Login(expected, {"WANDB_API_KEY": "sk-1"})
    # The configuration has precedence.
    assert login_of({"WANDB_MODE": "offline"}, Environment(WANDB_BASE_URL="http://here")).env == {}


def test_the_login_of_this_machine_reaches_the_hosts(home: Path) -> None:
    netrc = home / ".netrc"
    netrc.write_text(
        "machine api.wandb.ai login user password sk-1\nmachine other login user password sk-2\n"
    )
    netrc.chmod(0o600)
    assert login_of({}, Environment()) == Login({}, {"WANDB_API_KEY": "sk-1"})
    assert login_of({}, Environment(WANDB_BASE_URL="https://other:8080/")).secrets == {
        "WANDB_API_KEY": "sk-2"
    }
    assert login_of({}, Environment(WANDB_BASE_URL="https://third")).env == OFFLINE
    netrc.write_text("machine\n")
    assert login_of({}, Environment()).env == OFFLINE


def test_a_given_mode_is_kept_without_a_key() -> None:
    assert login_of(OFFLINE, Environment()) == Login()
    assert login_of({}, Environment(WANDB_MODE="disabled")) == Login()
    assert login_of({"WANDB_MODE": "online"}, Environment()).notice.startswith(
        "W&B has no API key for mode online"
    )
