"""Configurations of `ssh`: a connection by `ssh` itself, and by us with and without OpenSSH.

All must reach the same host as the same user, with the same key, from the same address and over the same
hosts, as the servers' logs report it; or all must fail. Without OpenSSH, the option may be refused instead.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from flagscale.remote.pipe import Unreachable
from flagscale.remote.ssh import connect
from flagscale.remote.transport import HostAccess
from flagscale_testing.farm.credentials import FarmHost, account
from flagscale_testing.farm.farm import Farm, wait_until
from flagscale_testing.farm.fixtures import MakeLoopbackFarm
from flagscale_testing.farm.loopback import LoopbackFarm
from tests.hosts.conftest import ROOT
from tests.hosts.ssh_cases import FAST, SLOW, Case

RELAY = f"{sys.executable} -S {ROOT}/tests/hosts/relay.py"
SHOW = 'echo "$FARM_HOST $(id -un)"'
EVENT = re.compile(r"(Accepted \S+|Invalid user|User) (?:for )?(\S*) from (\S+) (?:port \d+ ssh2: (.*))?")
CASES = [
    *(pytest.param(case, id=case.name) for case in FAST),
    *(pytest.param(case, id=case.name, marks=pytest.mark.slow) for case in SLOW),
]


@pytest.fixture(scope="module")
def running_farm(make_loopback_farm: MakeLoopbackFarm) -> LoopbackFarm:
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
    """Return what the servers have reported since: host, result, user, client's address, user's key."""
    found = []
    for host in farm.hosts:
        for one in EVENT.finditer(host.log.read_text(errors="replace")[begun[host] :]):
            found.append((host.name, *map(str, one.groups())))
    return sorted(found)


def now(farm: Farm) -> dict[FarmHost, int]:
    return {host: len(host.log.read_text(errors="replace")) for host in farm.hosts}


@pytest.mark.parametrize("case", CASES)
def test_a_configuration_means_what_it_means_to_ssh(
    farm: LoopbackFarm, case: Case, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write(farm, case)
    begun = now(farm)
    by_itself = by_ssh(farm, case), events(farm, begun)
    assert bool(by_itself[0]) != bool(case.says), by_itself
    for has_openssh in (True, False):
        wait_until(lambda: not list((farm.home / ".ssh").glob("master-*")), "the end of ControlPersist")
        write(farm, case)
        if not has_openssh:
            monkeypatch.setenv("PATH", str(tmp_path))
        begun = now(farm)
        printed, why = by_us(farm, case)
        if case.names and not has_openssh:
            assert (printed, events(farm, begun)) == ("", [])
            assert re.search(rf"(?i)(config|known_hosts):\d+: .*{case.names}", why), why
            assert "install OpenSSH" in why
        else:
            assert (printed, events(farm, begun)) == by_itself, why
            assert (case.says.format(**fields(farm)) or "\0") in (why or "\0")
        assert not list((farm.home / ".ssh").glob("master-*")), "a ControlMaster of ours is left"
