"""Connections where `ssh` is not installed; `test_ssh_configs.py` has the configurations."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from flagscale.remote.openssh import client as openssh
from flagscale.remote.without_openssh.connection import _connected
from flagscale_testing.farm.farm import alive, wait_until
from flagscale_testing.farm.fixtures import MakeLoopbackFarm
from flagscale_testing.farm.loopback import LoopbackFarm
from tests.hosts.access import ask, configure, refusal, way
from tests.hosts.conftest import logins


@pytest.fixture(scope="module")
def running_farm(make_loopback_farm: MakeLoopbackFarm) -> LoopbackFarm:
    return make_loopback_farm(2)


@pytest.fixture
def farm(farm: LoopbackFarm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LoopbackFarm:
    monkeypatch.setenv("PATH", str(tmp_path))
    return farm


def test_one_session_performs_all_commands_and_a_lost_one_is_replaced(farm: LoopbackFarm) -> None:
    host = farm.hosts[0]
    before, transport = logins(host), way(host.address)
    assert all(ask(transport)["ok"] for _ in range(3))
    assert logins(host) == before + 1
    (session,) = farm.processes(host)
    session.kill()
    wait_until(lambda: ask(transport)["ok"], "another session")
    assert logins(host) == before + 2
    with ThreadPoolExecutor(2) as pool:
        assert all(reply["ok"] for reply in pool.map(ask, [transport] * 4))


def test_what_is_wrong_is_reported(farm: LoopbackFarm, tmp_path: Path) -> None:
    host = farm.hosts[0]
    assert refusal(way(host.address, ssh_port=1)) == f"{host.address} port 1: Connection refused"
    assert refusal(way("nowhere.invalid")) == "cannot resolve the host name nowhere.invalid"
    message = refusal(way(host.address, python="/no/such/python"))
    assert message.startswith("FlagScale does not start there: ")
    assert "No such file or directory" in message
    configure(
        farm,
        f"Host loop\n  ProxyJump loop\nHost t\n  ProxyJump {host.name}\n  Port 1\nHost u\n  ProxyJump a,\n",
    )
    assert refusal(way("loop")) == "ProxyJump leads back to loop"
    assert "t port 1: " in refusal(way("t"))
    assert refusal(way("u")) == "ProxyJump: `` is not a host; write `user@host:port`"
    farm.config.write_bytes(b"\xff\n")
    assert refusal(way("t")) == f"{farm.config} cannot be read: it is not UTF-8 text"


def test_a_proxy_command_is_named_and_ends_with_all_its_processes(farm: LoopbackFarm) -> None:
    configure(farm, "Host t\n  HostName 10.0.0.1\n  Port 22\n  ProxyCommand /bin/sh -c 'exit 1'\n")
    assert "10.0.0.1 port 22 (through ProxyCommand /bin/sh -c 'exit 1')" in refusal(way("t"))
    way_there = _connected("/bin/sh -c '/bin/sleep 60 & echo $!; wait'")
    part = psutil.Process(int(way_there.recv(64)))
    del way_there
    wait_until(lambda: not alive(part), "the end of the command's child", 10)


def test_an_unknown_or_changed_host_key_is_refused_and_the_hint_fixes_it(farm: LoopbackFarm) -> None:
    host, other = farm.hosts
    known = farm.home / ".ssh/known_hosts"
    text = known.read_text()
    own, foreign = (one.key.with_suffix(".pub").read_text().split()[1] for one in (host, other))
    known.write_text(text.replace(own, foreign))
    message = refusal(way(host.address))
    assert message.startswith("its host key has changed: someone may be intercepting the connection; ")
    assert f"remove [{host.address}]:{host.port} from known_hosts" in message
    known.write_text("")
    message = refusal(way(host.address))
    assert message.startswith("its host key is unknown; if it is SHA256:")
    (hint,) = re.findall("`(.+)`", message)
    subprocess.run(["/bin/sh", "-c", hint], check=True)
    assert ask(way(host.address))["ok"]


def test_a_key_with_a_passphrase_is_named(
    farm: LoopbackFarm, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    with monkeypatch.context() as patch:
        patch.setenv("PATH", os.defpath)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", str(key)], check=True)
    own = farm.config.read_text()
    farm.config.write_text(own.replace(f"{farm.home}/.ssh/id_ed25519", str(key)))
    assert (
        refusal(way(farm.hosts[0].address)) == "the key has a passphrase; load it into an agent with ssh-add"
    )


def test_ssh_that_cannot_be_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another program of that name, or a user id without an account."""
    assert openssh.program()
    with monkeypatch.context() as patch:
        (tmp_path / "ssh").write_text("#!/bin/sh\necho Dropbear v2022.83 >&2\n")
        (tmp_path / "ssh").chmod(0o755)
        patch.setenv("PATH", str(tmp_path))
        assert openssh.program() is None
        # But a wrapper that prints something is still OpenSSH.
        (tmp_path / "wrapper").mkdir()
        (tmp_path / "wrapper/ssh").write_text("#!/bin/sh\necho wrapped >&2\necho OpenSSH_9.2p1 >&2\n")
        (tmp_path / "wrapper/ssh").chmod(0o755)
        patch.setenv("PATH", str(tmp_path / "wrapper"))
        assert openssh.program() == str(tmp_path / "wrapper/ssh")

    def unknown(uid: int) -> None:
        raise KeyError(uid)

    openssh._account_home.cache_clear()
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert openssh.program() is None
    openssh._account_home.cache_clear()
