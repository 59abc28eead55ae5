"""Hosts that cannot be reached over SSH: each message says what is wrong and how to fix it."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flagscale import __version__
from flagscale_testing.farm.credentials import FarmHost, account
from flagscale_testing.farm.loopback import LoopbackFarm
from tests.hosts.access import ask, configure, refusal, way
from tests.hosts.conftest import ROOT


def test_a_host_can_be_reached_by_address_and_by_alias(farm: LoopbackFarm) -> None:
    host = farm.hosts[0]
    configure(farm, f"Host short\n  HostName {host.address}\n  Port {host.port}\n")
    for name in (host.address, host.name, "short"):
        assert ask(way(name)) == {"ok": True, "message": "vacant"}


def test_the_port_of_the_plan_overrides_the_ssh_configuration(farm: LoopbackFarm) -> None:
    host = farm.hosts[0]
    configure(farm, f"Host {host.address}\n  Port 1\n")
    assert refusal(way(host.address)) == f"{host.address} port 1: Connection refused"
    assert ask(way(host.address, ssh_port=host.port))["ok"]


def test_a_rejected_identity_is_reported_with_a_command_to_try(farm: LoopbackFarm, tmp_path: Path) -> None:
    host, key = farm.hosts[0], tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    own = farm.config.read_text()
    farm.config.write_text(own.replace(f"{farm.home}/.ssh/id_ed25519", str(key)))
    message = refusal(way(host.address, ssh_port=host.port))
    assert "none of your keys is accepted" in message
    assert message.endswith(f"; try `ssh -p {host.port} {host.address}`")
    # The same key with a passphrase, which `ssh` passes over without a word.
    subprocess.run(["ssh-keygen", "-q", "-p", "-P", "", "-N", "secret", "-f", str(key)], check=True)
    message = refusal(way(host.address))
    assert f"; {key} has a passphrase: load it into an agent with `ssh-add`" in message
    # The right key, which `ssh` does not use because others can read it.
    farm.config.write_text(own)
    right = farm.home / ".ssh/id_ed25519"
    right.chmod(0o644)
    message = refusal(way(host.address))
    assert f"; {right} is not used because others can read it: `chmod 600 {right}`; try" in message
    run_hint(re.search("`chmod .+?`", message)[0])  # type: ignore[index]
    # One accepted identity is enough, and a missing identity file is not an error.
    farm.config.write_text(own)
    configure(farm, f"Host *\n  IdentityFile {tmp_path}/missing\n  IdentityFile {key}\n")
    assert ask(way(host.address))["ok"]


def test_a_failure_on_the_way_names_the_jump_host(farm: LoopbackFarm) -> None:
    jump, behind, _ = farm.hosts
    own = f"Host behind\n  HostName {behind.address}\n  Port {behind.port}\n  ProxyJump {jump.name}\n"
    configure(farm, own)
    assert ask(way("behind"))["ok"]
    farm.stop_sshd(behind)
    message = refusal(way("behind"))
    assert message.startswith(f"{behind.address} port {behind.port} (through ProxyJump {jump.name}): ")
    assert message.endswith("Connection refused")
    farm.start_sshd(behind)
    known = farm.home / ".ssh/known_hosts"
    of_jump, *others = known.read_text().splitlines(keepends=True)
    known.write_text("".join(others))
    message = refusal(way("behind"))
    assert message.startswith(f"the host key of [{jump.address}]:{jump.port} is unknown")
    run_hint(message)
    assert ask(way("behind"))["ok"]
    # The key of a host behind another one cannot be asked for by `ssh-keyscan`.
    known.write_text(of_jump)
    hint = "then add it: `ssh -o StrictHostKeyChecking=ask behind`"
    assert refusal(way("behind")) == f"its host key is unknown; verify it, {hint}"
    farm.stop_sshd(jump)
    assert refusal(way("behind")) == f"{jump.address} port {jump.port}: Connection refused"


def run_hint(message: str) -> None:
    """Run the commands that a message suggests."""
    for hint in re.findall("`(.+?)`", message):
        subprocess.run(hint, shell=True, check=True, capture_output=True)


@pytest.mark.parametrize("checking", ["yes", "ask"])
def test_an_unknown_host_key_is_refused_and_the_hint_fixes_it(farm: LoopbackFarm, checking: str) -> None:
    configure(farm, f"StrictHostKeyChecking {checking}\n")
    host, known = farm.hosts[0], farm.home / ".ssh/known_hosts"
    known.write_text("")
    message = refusal(way(host.address))
    hint = f"ssh-keyscan -p {host.port} {host.address} >> {known}"
    assert message == f"its host key is unknown; verify it, then add it: `{hint}`"
    run_hint(message)
    assert ask(way(host.address))["ok"]


def test_a_host_key_under_an_alias_is_added_by_a_login(farm: LoopbackFarm) -> None:
    host = farm.hosts[0]
    configure(farm, f"Host {host.name}\n  HostKeyAlias other\n")
    hint = f"`ssh -o StrictHostKeyChecking=ask {host.name}`"
    assert refusal(way(host.name)) == f"its host key is unknown; verify it, then add it: {hint}"
    configure(farm, "UserKnownHostsFile /dev/null\n")
    assert "name a file for it with UserKnownHostsFile" in refusal(way(host.name))


def test_a_changed_host_key_is_refused_and_the_hint_fixes_it(farm: LoopbackFarm) -> None:
    host, other = farm.hosts[:2]
    known = farm.home / ".ssh/known_hosts"
    own, foreign = (one.key.with_suffix(".pub").read_text().split()[1] for one in (host, other))
    known.write_text(known.read_text().replace(own, foreign))
    message = refusal(way(host.address))
    assert message.startswith("its host key has changed: someone may be intercepting the connection; ")
    run_hint(message)
    assert ask(way(host.address))["ok"]


def test_a_refused_connection_and_an_unknown_name_are_reported(farm: LoopbackFarm) -> None:
    host = farm.hosts[0]
    farm.stop_sshd(host)
    assert refusal(way(host.address)) == f"{host.address} port {host.port}: Connection refused"
    farm.start_sshd(host)
    assert ask(way(host.address))["ok"]
    assert "cannot resolve the host name nowhere.invalid" in refusal(way("nowhere.invalid"))


def test_a_server_that_never_greets_is_reported(farm: LoopbackFarm) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        message = refusal(way("127.0.0.1", ssh_port=port))
    assert message == f"127.0.0.1 port {port} accepts connections, but no SSH server answered in 4 s"


def test_a_server_that_does_not_speak_ssh_is_reported(farm: LoopbackFarm) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:

        def answer() -> None:
            with server.accept()[0] as client:
                client.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        pool.submit(answer)
        port = server.getsockname()[1]
        assert f"127.0.0.1 port {port}" in refusal(way("127.0.0.1", ssh_port=port))


def test_mistakes_in_the_ssh_configuration_are_reported_with_their_lines(farm: LoopbackFarm) -> None:
    configure(farm, "Nonsense 1\nPort many\n")
    assert refusal(way(farm.hosts[0].address)) == (
        f"{farm.config}:1: Bad configuration option: nonsense; {farm.config}:2: Bad port 'many'."
    )
    farm.config.chmod(0o666)
    assert refusal(way("t")) == f"Bad owner or permissions on {farm.config}"
    farm.config.chmod(0o600)


def test_what_a_server_displays_is_no_error(farm: LoopbackFarm) -> None:
    host = farm.hosts[2]
    settings = host.directory / "sshd_config"
    kept = settings.read_text()
    (host.directory / "banner").write_text("Host key verification failed is no joke.\nAuthorized only!\n")
    farm.stop_sshd(host)
    settings.write_text(f"{kept}Banner {host.directory}/banner\n")
    farm.start_sshd(host)
    assert ask(way(host.address))["ok"]
    configure(farm, f"Host {host.address}\n  User nobody-of-this-name\n")
    assert refusal(way(host.address)).startswith("none of your keys is accepted (nobody-of-this-name@")
    farm.stop_sshd(host)
    settings.write_text(kept)
    farm.start_sshd(host)


def test_a_name_is_never_an_option(farm: LoopbackFarm, tmp_path: Path) -> None:
    assert "invalid characters" in refusal(way(f"-oProxyCommand=touch {tmp_path}/file"))
    assert not list(tmp_path.iterdir())


def test_a_missing_python_is_reported(farm: LoopbackFarm) -> None:
    message = refusal(way(farm.hosts[0].address, python="/no/such/python"))
    assert message.startswith("FlagScale does not start there: ")
    assert "/no/such/python" in message
    assert "No such file or directory" in message


def test_a_missing_flagscale_is_reported(farm: LoopbackFarm, tmp_path: Path) -> None:
    bare = str(Path(sys.executable).resolve())  # outside the environment in which FlagScale is installed
    message = refusal(way(farm.hosts[0].address, python=bare, source_root=str(tmp_path)))
    assert message.startswith("FlagScale does not start there: ")
    assert "No module named" in message
    assert "flagscale" in message


def test_another_version_of_flagscale_is_reported(farm: LoopbackFarm, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "flagscale", tmp_path / "flagscale", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "flagscale/__init__.py").write_text('__version__ = "0.0.7"\n')
    message = refusal(way(farm.hosts[0].address, source_root=str(tmp_path)))
    assert message == f"FlagScale 0.0.7 is installed there, but {__version__} here"


@pytest.fixture
def noisy(farm: LoopbackFarm, tmp_path: Path) -> Iterator[tuple[FarmHost, Path]]:
    """A host whose shell first reads a file (only bash does; with SHLVL=1 it may prefer `.bashrc`)."""
    if "bash" not in account().pw_shell:
        pytest.skip("only bash reads a file first, and the login shell of this user is not bash")
    host = farm.hosts[2]
    settings, profile = host.directory / "sshd_config", tmp_path / "profile"
    kept = settings.read_text()
    farm.stop_sshd(host)
    settings.write_text(re.sub(r"(?m)^SetEnv .*", rf"\g<0> SHLVL=5 BASH_ENV={profile}", kept))
    farm.start_sshd(host)
    yield host, profile
    farm.stop_sshd(host)
    settings.write_text(kept)
    farm.start_sshd(host)


@pytest.mark.parametrize("has_ssh", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_output_of_the_login_shell_is_ignored_or_reported(
    noisy: tuple[FarmHost, Path], has_ssh: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not has_ssh:
        monkeypatch.setenv("PATH", str(tmp_path))
    host, profile = noisy
    profile.write_text('echo Welcome; echo \'{"a": 1}\'; echo "[]"; echo 17; echo; echo beware >&2\n')
    assert ask(way(host.address))["ok"]
    # However long it is, and if its last line does not end, such as a window's title.
    profile.write_text("yes Welcome | head -2000; printf '\\377\\n\\033]0;title\\007'\n")
    assert ask(way(host.address))["ok"]
    # But not if it never ends.
    profile.write_text("yes Welcome\n")
    hasty = way(host.address, connect_timeout=2.0)
    assert refusal(hasty).startswith("connected, but it did not answer within 2 s: Welcome\n")
    profile.write_text("yes | tr -d '\\n'\n")
    assert refusal(hasty) == "connected, but it did not answer within 2 s"
    # A forced command that says no on its standard output is quoted.
    profile.write_text("echo This account is not available.; exit 1\n")
    assert refusal(way(host.address)) == "FlagScale does not start there: This account is not available."
    # The output of a shell that ends at once is quoted.
    profile.write_text("echo the disk of your home is away >&2; exit 1\n")
    assert refusal(way(host.address)) == "FlagScale does not start there: the disk of your home is away"
    # A shell that never runs the command is reported in time.
    profile.write_text("sleep 30\n")
    assert refusal(way(host.address)) == "connected, but it did not answer within 4 s"
