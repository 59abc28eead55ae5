"""Every operation of a farm has real effects, seen by OpenSSH's client, TCP and the process table."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flagscale_testing.farm.credentials import FarmHost
from flagscale_testing.farm.farm import Farm, alive, wait_until
from flagscale_testing.farm.fixtures import MakeLoopbackFarm, MakeNamespaceFarm
from flagscale_testing.farm.loopback import LoopbackFarm
from flagscale_testing.farm.namespaces import NamespaceFarm
from flagscale_testing.farm.owner import DAEMONS, sleepers
from flagscale_testing.farm.requirements import missing_for_loopback, missing_for_namespaces
from flagscale_testing.farm.sshd import HOST_MARK, TAG_MARK

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def loopback(make_loopback_farm: MakeLoopbackFarm) -> LoopbackFarm:
    return make_loopback_farm(3)


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared") / "the disk"


@pytest.fixture(scope="module")
def namespaces(make_namespace_farm: MakeNamespaceFarm, private: Path) -> NamespaceFarm:
    return make_namespace_farm(3, [private])


@pytest.fixture(params=["loopback", "namespaces"])
def farm(request: pytest.FixtureRequest) -> Farm:
    made: Farm = request.getfixturevalue(request.param)
    return made


def ssh(farm: Farm, host: FarmHost, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(farm.ssh_command(host, *words), capture_output=True, text=True, timeout=30)


def connects(farm: Farm, host: FarmHost, to: str, port: int, seconds: float = 10) -> bool:
    """Return whether a process on the host can connect to an address."""
    script = (
        "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3]))"
    )
    words = [sys.executable, "-S", "-c", script, to, str(port), str(seconds)]
    return farm.run(host, words).returncode == 0


def reaches(host: FarmHost, seconds: float = 10) -> bool:
    """Return whether we can connect to the host's sshd."""
    with suppress(OSError), socket.create_connection((host.address, host.port), seconds) as connection:
        return connection.recv(4) == b"SSH-"
    return False


def test_the_environment_of_a_session_has_the_marks_of_its_host(farm: Farm) -> None:
    host = farm.hosts[2]
    result = ssh(farm, host, "env")
    assert result.returncode == 0, result.stderr
    environment = dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)
    assert (environment[TAG_MARK], environment[HOST_MARK]) == (farm.tag, host.name)
    assert environment["SSH_CONNECTION"].split()[2:] == [host.address, str(host.port)]


def test_a_host_can_be_reached_by_address_and_sees_the_checkout(farm: Farm) -> None:
    words = ["ssh", "-F", str(farm.config), farm.hosts[1].address, f"cat '{Path(__file__)}'"]
    assert subprocess.check_output(words, text=True) == Path(__file__).read_text()


def test_every_host_reaches_every_host(farm: Farm) -> None:
    assert all(connects(farm, host, other.address, other.port) for host in farm.hosts for other in farm.hosts)


def test_an_unknown_key_is_refused(farm: Farm) -> None:
    key = farm.directory / "other_key"
    if not key.exists():
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    own = farm.config.read_text()
    other = farm.directory / "other_config"
    other.write_text(own.replace(str(farm.home / ".ssh/id_ed25519"), str(key)))
    words = ["ssh", "-F", str(other), farm.hosts[0].name, "true"]
    refused = subprocess.run(words, capture_output=True, text=True)
    assert refused.returncode == 255
    assert "Permission denied (publickey)" in refused.stderr


def test_the_launcher_environment_has_the_home_of_the_farm_and_no_ssh_agent(
    farm: Farm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/agent")
    environment = farm.environment()
    assert environment["HOME"] == str(farm.home)
    assert "SSH_AUTH_SOCK" not in environment
    assert environment["PATH"] == os.environ["PATH"]


def test_a_hostfile_contains_addresses(farm: Farm) -> None:
    assert farm.hostfile(4, 1).read_text() == f"{farm.hosts[0].address} slots=4\n"
    assert len(farm.hostfile(2).read_text().splitlines()) == 3


def test_a_stopped_sshd_refuses_connections_but_its_sessions_go_on(farm: Farm) -> None:
    host = farm.hosts[0]
    with subprocess.Popen(
        farm.ssh_command(host, "echo here; cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as session:
        assert session.stdin
        assert session.stdout
        assert session.stdout.readline() == "here\n"
        farm.stop_sshd(host)
        assert "Connection refused" in ssh(farm, host, "true").stderr
        assert reaches(farm.hosts[1])
        session.stdin.write("still\n")
        session.stdin.close()
        assert session.stdout.read() == "still\n"
    farm.start_sshd(host)
    assert ssh(farm, host, "true").returncode == 0


def test_the_processes_of_a_host_exclude_those_of_other_hosts(farm: Farm) -> None:
    host, other = farm.hosts[:2]
    ssh(farm, host, "setsid sleep 603 >&- 2>&- <&- &")
    wait_until(lambda: sleepers(farm.processes(host)) == {"603"}, "the daemon")
    assert farm.processes(other) == []
    for process in farm.processes(host):
        process.kill()
    wait_until(lambda: farm.processes(host) == [], "the end of the daemon")


def test_many_hosts_can_start_at_once(make_loopback_farm: MakeLoopbackFarm) -> None:
    many = make_loopback_farm(64)
    assert len({host.address for host in many.hosts}) == 64
    assert all(reaches(host) for host in many.hosts)
    assert ssh(many, many.hosts[-1], "true").returncode == 0


def test_a_namespace_host_has_its_own_name_network_and_processes(namespaces: NamespaceFarm) -> None:
    host, other = namespaces.hosts[:2]
    seen = ssh(
        namespaces, host, f"hostname; hostname -I; getent hosts {other.name}; ps -A -o args= | head -1"
    )
    name, addresses, peer, init = seen.stdout.splitlines()
    assert (name, addresses.split()) == (host.name, [host.address])
    assert peer.split() == [other.address, other.name]
    assert init == "sleep infinity"


def test_a_namespace_host_reaches_the_launcher(namespaces: NamespaceFarm) -> None:
    with socket.create_server((str(namespaces.switch.launcher), 0)) as server:
        port = server.getsockname()[1]
        assert connects(namespaces, namespaces.hosts[0], str(namespaces.switch.launcher), port)
        assert server.accept()[1][0] == namespaces.hosts[0].address


def test_a_host_that_is_cut_off_is_silent_until_it_is_restored(namespaces: NamespaceFarm) -> None:
    host, other = namespaces.hosts[:2]
    namespaces.run(host, ["sh", "-c", "setsid sleep 603 >&- 2>&- <&- &"])
    namespaces.cut(host)
    assert not reaches(host, 1)
    assert not connects(namespaces, other, host.address, host.port, 1)
    assert not connects(namespaces, host, other.address, other.port, 1)
    assert connects(namespaces, other, namespaces.hosts[2].address, host.port)
    namespaces.restore(host)
    wait_until(lambda: reaches(host, 1), "the restored host", 10)
    assert sleepers(namespaces.processes(host)) == {"603"}
    for process in namespaces.processes(host):
        process.kill()


def test_a_power_off_leaves_no_processes_and_notifies_no_peers(namespaces: NamespaceFarm) -> None:
    host, other = namespaces.hosts[:2]
    ssh(namespaces, host, DAEMONS)
    wait_until(lambda: sleepers(namespaces.processes(host)) == {"600", "601"}, "the daemons")
    living = namespaces.processes(host)
    with socket.create_connection((host.address, host.port), 10) as connection:
        connection.recv(100)
        namespaces.power_off(host)
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.recv(1)
    assert not any(map(alive, living))
    assert namespaces.processes(host) == []
    assert not reaches(host, 1)
    assert reaches(other)
    namespaces.power_on(host)
    assert reaches(host)
    assert connects(namespaces, other, host.address, host.port)
    assert namespaces.processes(host) == []


def test_private_folders_are_separate_and_survive_a_power_off(
    namespaces: NamespaceFarm, private: Path
) -> None:
    host, other = namespaces.hosts[:2]
    for each in (host, other):
        namespaces.run(each, ["sh", "-c", f"echo {each.name} > '{private}/name'"]).check_returncode()
    for each in (host, other):
        assert namespaces.backing(each, private / "name").read_text() == f"{each.name}\n"
    assert list(namespaces.backing(namespaces.hosts[2], private).iterdir()) == []
    assert list(private.iterdir()) == []
    namespaces.power_off(host)
    namespaces.power_on(host)
    assert namespaces.run(host, ["cat", str(private / "name")]).stdout == f"{host.name}\n"


@pytest.mark.parametrize(
    ("kind", "end"),
    [
        ("loopback", "return"),
        ("loopback", "kill"),
        ("namespaces", "return"),
        ("namespaces", "kill"),
        ("namespaces", "kill keeper"),
    ],
)
def test_nothing_is_left_of_a_farm_after_its_owner_ends(kind: str, end: str, tmp_path: Path) -> None:
    if reason := missing_for_loopback() if kind == "loopback" else missing_for_namespaces():
        pytest.skip(reason)
    words = [sys.executable, "-m", "flagscale_testing.farm.owner", kind, str(tmp_path / "farm")]
    (tmp_path / "farm").mkdir()
    with subprocess.Popen(
        words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:  # it runs until we end it or close its stdin
        assert owner.stdout
        tag, *pids = json.loads(owner.stdout.readline())
        keeper, living = psutil.Process(pids[0]), []
        for pid in pids[1:]:
            with suppress(psutil.NoSuchProcess):  # a login may have just ended
                living.append(psutil.Process(pid))
        if end == "kill keeper":
            keeper.kill()
            wait_until(lambda: not any(map(alive, living)), "the end of the farm", 20)
        if end != "return":
            owner.kill()
    wait_until(lambda: not any(map(alive, [keeper, *living])), "the end of the farm", 20)
    assert marked(tag) == []
    wait_until(lambda: f"farm-{tag}" not in psutil.net_if_addrs(), "the end of the interface", 20)
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def marked(tag: str) -> list[psutil.Process]:
    """Return the processes on this machine that carry the mark of a farm."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(TAG_MARK) == tag:
                found.append(process)
    return found
