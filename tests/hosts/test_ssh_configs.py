"""Configurations of `ssh`, each connected twice: by `ssh` itself and by us, with and without OpenSSH installed.

Both must reach the same host as the same user, with the same key, from the same address and over the same
hosts, as the servers' logs report it; or both must fail. Without OpenSSH, a message may name the option instead.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from flagscale.remote.pipe import Unreachable
from flagscale.remote.ssh import connect
from flagscale.remote.transport import HostAccess
from flagscale_testing.farm.credentials import FarmHost, account
from flagscale_testing.farm.farm import Farm, wait_until
from flagscale_testing.farm.fixtures import MakeLoopbackFarm
from flagscale_testing.farm.loopback import LoopbackFarm
from tests.hosts.conftest import ROOT, user_of

RELAY = f"{sys.executable} -S {ROOT}/tests/hosts/relay.py"
SHOW = 'echo "$FARM_HOST $(id -un)"'
EVENT = re.compile(r"(Accepted \S+|Invalid user|User) (?:for )?(\S*) from (\S+) (?:port \d+ ssh2: (.*))?")


@dataclass(frozen=True)
class Case:
    """A configuration before the farm's own lines. `{a}`, `{b}`, `{c}` are addresses of three hosts."""

    name: str
    config: str
    host: str = "t"
    port: int = 0
    """The port of the job; 0: none, 1: that of the farm."""
    known: str = ""
    """Replaces the file of known hosts; see `known_hosts`."""
    own: str = ""
    """Replaces the farm's lines for all hosts."""
    says: str = ""
    """Both fail, and our message contains this."""
    names: str = ""
    """The option that is refused without OpenSSH; "": it is not."""
    is_fast: bool = False


T = "Host t\n HostName {a}\n Port {port}\n"
DEFAULTS = "UserKnownHostsFile {ssh}/known_hosts\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n"
CASES = [
    Case("port", T),
    Case("port of the job", "Host t\n HostName {a}\n Port 1\n", port=1, is_fast=True),
    Case("jump by name", T + " ProxyJump node-2\n"),
    Case("jump by user, address and port", T + " ProxyJump {user}@{b}:{port}\n", is_fast=True),
    Case("jump to IPv6", T + " ProxyJump {user}@[::1]:{port}\n", is_fast=True),
    Case("jump by URI", T + " ProxyJump ssh://{user}@{b}:{port}\n", is_fast=True),
    Case("jump by IPv6 URI", T + " ProxyJump ssh://{user}@[::1]:{port}\n"),
    Case("jumps", T + " ProxyJump node-2,{user}@{c}:{port}\n", is_fast=True),
    Case("jump whose jump is configured", "Host node-2\n ProxyJump node-3\n" + T + " ProxyJump node-2\n"),
    Case("no jump", T + " ProxyJump none\nHost *\n ProxyJump node-2\n"),
    Case("jump to nowhere", T + " ProxyJump {b}:1\n", says="{b} port 1: Connection refused"),
    Case("jump before command", T + " ProxyJump node-2\n ProxyCommand false\n"),
    Case("command", T + " ProxyCommand {relay} %h %p\n", is_fast=True),
    Case("command before jump", T + " ProxyCommand {relay} %h %p\n ProxyJump node-2\n"),
    Case(
        "tokens of a command",
        T + " User {user}\n ProxyCommand sh -c '[ \"%r %n 5%%\" = \"{user} t 5%%\" ] && exec {relay} \"%h\" %p'\n",
    ),
    Case("no command", T + " ProxyCommand none\nHost *\n ProxyCommand false\n"),
    Case("token without support", T + " ProxyCommand {relay} %h %p %C\n", names="%C"),
    Case("HostKeyAlias", T + " HostKeyAlias other\n", known="other {key_a}", is_fast=True),
    Case("HostKeyAlias that is unknown", T + " HostKeyAlias other\n", says="its host key is unknown"),
    Case("authority", T.replace("{a}", "{c}"), known="@cert-authority * {ca}", names="@cert-authority"),
    Case("revoked", T, known="{all}@revoked * {key_a}", says="revoked", names="@revoked", is_fast=True),
    Case("known without a port", T, known="{a} {key_a}"),
    Case("known among several", T, known="[{a}]:{port} {key_b}\n[{a}]:{port} {key_a}", is_fast=True),
    Case("known with another key", T, known="[{a}]:{port} {key_b}", says="its host key has changed"),
    Case("Match host", T + "Match host {a}\n ProxyJump node-2\nMatch host t\n ProxyCommand false\n"),
    Case("Match originalhost", T + "Match originalhost t,u\n ProxyJump node-2\n"),
    Case("Match not originalhost", T + "Match !originalhost t\n ProxyCommand false\n"),
    Case("Match user", "Host t\n User {user}\n" + T + "Match user {user} localuser *\n ProxyJump node-2\n"),
    Case("Match exec", T + 'Match exec "test %n = t"\n ProxyJump node-2\n', names="Match exec", is_fast=True),
    Case("Match not exec", T + 'Match originalhost u exec "true"\n ProxyCommand false\n'),
    Case("Match final", T + "Match final host {a}\n ProxyJump node-2\n"),
    Case("Match all", T + "Match all\n ProxyJump node-2\n"),
    Case("patterns", "Host t? !t2\n Port 1\nHost t2 u*\n HostName {a}\n Port {port}\n", host="t2"),
    Case("Include", 'Include "{ssh}/some hosts"\n' + T, is_fast=True),
    Case("Include for a host", "Host t\n Include '{ssh}/some hosts'\n" + T),
    Case("Include for another host", 'Host u\n Include "{ssh}/some hosts"\n' + T),
    Case("several identities", T, own="IdentityFile {ssh}/stranger\nIdentityFile {ssh}/second\n" + DEFAULTS),
    Case(
        "IdentitiesOnly",
        T,
        own="IdentityFile {ssh}/stranger\nIdentitiesOnly yes\n" + DEFAULTS,
        says="none of your keys is accepted",
    ),
    Case(
        "CertificateFile",
        T.replace("{a}", "{c}"),
        own="IdentityFile {ssh}/stranger\nCertificateFile {ssh}/certificate\nIdentitiesOnly yes\n" + DEFAULTS,
        names="CertificateFile",
    ),
    Case("quotes", 'Host "t"\n HostName="{a}"\n Port = {port} # a comment\n IdentityFile "{ssh}/second"\n'),
    Case("User", T + " User nobody-of-this-name\n", says="none of your keys is accepted", is_fast=True),
    Case("HostName", "Host 2\n HostName 127.0.0.%h\n Port {port}\n", host="2"),
    Case(
        "CanonicalizeHostname",
        "CanonicalizeHostname yes\nMatch canonical\n Port {port}\nMatch all\n Port 1\n",
        host="127.0.0.2",
        names="CanonicalizeHostname",
    ),
    Case("StrictHostKeyChecking no", T + " StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n", known="#",
         names="StrictHostKeyChecking"),
    Case("StrictHostKeyChecking accept-new", T + " StrictHostKeyChecking accept-new\n", known="#",
         names="StrictHostKeyChecking", is_fast=True),
    Case("UserKnownHostsFile", T + " UserKnownHostsFile /dev/null {ssh}/known_hosts\n"),
    Case("KnownHostsCommand", T + " KnownHostsCommand /bin/cat {ssh}/all\n", known="#", names="KnownHostsCommand"),
    Case("BindAddress", T + " BindAddress 127.0.0.9\n", names="BindAddress", is_fast=True),
    Case("AddressFamily", T + " AddressFamily inet6\n", says="cannot resolve", names="AddressFamily"),
    Case("ControlMaster", T + " ControlMaster auto\n ControlPersist 2\n ControlPath {ssh}/%C\n"),
    Case("RemoteCommand", T + " RemoteCommand false\n RequestTTY force\n SessionType none\n", is_fast=True),
    Case("LocalForward", T + " LocalForward {port} localhost:1\n ExitOnForwardFailure yes\n"),
    Case("SetEnv", T + " SetEnv FARM_HOST=elsewhere\n", names="SetEnv"),
    Case("PubkeyAuthentication", T + " PubkeyAuthentication no\n", says="none of your keys is accepted",
         names="PubkeyAuthentication"),
    Case("HashKnownHosts", T + " HashKnownHosts yes\n", known="hashed"),
    Case("options without effect", T + " Compression yes\n LogLevel QUIET\n ForwardAgent yes\n SendEnv LANG\n"),
    Case("unknown option", T + " Nonsense 1\n", says="{ssh}/config:4: ", names="Nonsense"),
    Case("ignored option", "IgnoreUnknown Nonsense\n" + T + " Nonsense 1\n", names="Nonsense"),
]  # fmt: skip


def parameters() -> Iterator[object]:
    for case in CASES:
        yield pytest.param(case, id=case.name, marks=() if case.is_fast else pytest.mark.slow)


@pytest.fixture(scope="module")
def loopback(make_loopback_farm: MakeLoopbackFarm) -> LoopbackFarm:
    """Three hosts; the second one also listens on ::1, the last one knows an authority of hosts and users."""
    farm = make_loopback_farm(3)
    folder, (_, second, last) = farm.home / ".ssh", farm.hosts
    for name in ("second", "stranger", "authority"):
        keygen("-t", "ed25519", "-N", "", "-f", str(folder / name))
    with (folder / "authorized_keys").open("a") as authorized:
        authorized.write((folder / "second.pub").read_text())
    keygen("-s", str(folder / "authority"), "-I", "host", "-h", f"{last.key}.pub")
    keygen(
        "-s", str(folder / "authority"), "-I", "user", "-n", account().pw_name, str(folder / "stranger.pub")
    )
    (folder / "stranger-cert.pub").rename(folder / "certificate")
    (folder / "some hosts").write_text("Host t\n ProxyJump node-2\nHost u\n ProxyCommand false\n")
    (folder / "all").write_text((folder / "known_hosts").read_text())
    farm.stop_sshd(second, last)
    with (second.directory / "sshd_config").open("a") as settings:
        settings.write(f"ListenAddress [::1]:{second.port}\n")
    with (last.directory / "sshd_config").open("a") as settings:
        settings.write(f"HostCertificate {last.key}-cert.pub\nTrustedUserCAKeys {folder}/authority.pub\n")
    farm.start_sshd(second, last)
    return farm


@pytest.fixture
def farm(loopback: LoopbackFarm, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackFarm]:
    with user_of(loopback, monkeypatch):
        yield loopback


def keygen(*words: str) -> None:
    subprocess.run(["ssh-keygen", "-q", *words], check=True, capture_output=True)


def fields(farm: Farm) -> dict[str, str]:
    """Return the values of the placeholders."""
    folder = farm.home / ".ssh"
    found = {"port": farm.hosts[0].port, "ssh": folder, "user": account().pw_name, "relay": RELAY,
             "ca": key_of(folder / "authority"), "all": (folder / "all").read_text()}  # fmt: skip
    for letter, host in zip("abc", farm.hosts, strict=True):
        found |= {letter: host.address, f"key_{letter}": key_of(host.key)}
    return {name: str(value) for name, value in found.items()}


def key_of(path: Path) -> str:
    return " ".join(Path(f"{path}.pub").read_text().split()[:2])


def write(farm: Farm, case: Case) -> None:
    """Write the files of a case."""
    known, values = farm.home / ".ssh/known_hosts", fields(farm)
    own = farm.config.read_text()
    own = own[: own.index("Host *")] + "Host *\n" + case.own if case.own else own
    farm.config.write_text((case.config + own).format(**values))
    text = values["all"] + f"[::1]:{values['port']} {values['key_b']}\n"
    known.write_text(case.known.format(**values) + "\n" if case.known not in ("", "hashed") else text)
    if case.known == "hashed":
        keygen("-H", "-f", str(known))


def by_ssh(farm: Farm, case: Case) -> str:
    """Return what the command prints if `ssh` runs it; "" if `ssh` fails."""
    port = ["-p", str(farm.hosts[0].port)] if case.port else []
    command = "false" not in case.config.partition("RemoteCommand ")[2]
    words = ["ssh", "-F", str(farm.config), "-T", "-o", "BatchMode=yes", "-o", "ClearAllForwardings=yes"]
    words += [] if command else ["-o", "RemoteCommand=none", "-o", "SessionType=default"]
    done = subprocess.run(
        [*words, *port, case.host, SHOW],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    return done.stdout.strip()


def by_us(farm: Farm, case: Case) -> tuple[str, str]:
    """Return the same if we run it, and the reason if we cannot."""
    port = farm.hosts[0].port if case.port else None
    try:
        program = connect(HostAccess(case.host, "", "", ssh_port=port, connect_timeout=10.0), SHOW)
        return program.receive(10.0).strip(), ""
    except Unreachable as error:
        return "", str(error)


def events(farm: Farm, begun: dict[FarmHost, int]) -> list[tuple[str, ...]]:
    """Return what the servers report since then: host, result, user, address of the client, key of the user."""
    found = []
    for host in farm.hosts:
        for one in EVENT.finditer(host.log.read_text(errors="replace")[begun[host] :]):
            found.append((host.name, *map(str, one.groups())))
    return sorted(found)


def now(farm: Farm) -> dict[FarmHost, int]:
    return {host: len(host.log.read_text(errors="replace")) for host in farm.hosts}


@pytest.mark.parametrize("case", parameters())
def test_a_configuration_means_what_it_means_to_ssh(
    farm: LoopbackFarm, case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(farm, case)
    begun = now(farm)
    by_itself = by_ssh(farm, case), events(farm, begun)
    assert bool(by_itself[0]) != bool(case.says), by_itself
    for has_openssh in (True, False):
        wait_until(lambda: not list((farm.home / ".ssh").glob("?" * 40)), "the end of ControlPersist")
        if not has_openssh:
            monkeypatch.setenv("PATH", str(tmp_path))
        write(farm, case)
        begun = now(farm)
        printed, why = by_us(farm, case)
        if case.names and not has_openssh:
            assert (printed, events(farm, begun)) == ("", [])
            assert re.search(rf"(?i)(config|known_hosts):\d+: .*{case.names}", why), why
            assert "install OpenSSH" in why
        else:
            assert (printed, events(farm, begun)) == by_itself, why
            assert (case.says.format(**fields(farm)) or "\0") in (why or "\0")
        assert not list((farm.home / ".ssh").glob("?" * 40)), "a ControlMaster of ours is left"
