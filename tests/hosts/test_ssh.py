"""The SSH transport with real servers: it uses the user's configuration and reports what is wrong."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from flagscale import __version__
from flagscale.plan.render import scripts
from flagscale.remote.pipe import Unreachable
from flagscale.remote.ssh import Session, SshTransport
from flagscale.remote.transport import HostAccess
from flagscale.run.state import Reply
from flagscale_testing.farm.credentials import FarmHost, account
from flagscale_testing.farm.farm import Farm, is_sshd, wait_until
from flagscale_testing.farm.fixtures import MakeLoopbackFarm
from flagscale_testing.farm.loopback import LoopbackFarm
from tests.hosts.conftest import HOSTILE, ROOT, MakeJob, command_line, logins, user_of

TIMEOUT = 4.0


@pytest.fixture(scope="module")
def loopback(make_loopback_farm: MakeLoopbackFarm) -> LoopbackFarm:
    return make_loopback_farm(3)


@pytest.fixture
def farm(loopback: LoopbackFarm, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackFarm]:
    with user_of(loopback, monkeypatch):
        yield loopback


def way(host: str, **changes: object) -> SshTransport:
    access = {"python": sys.executable, "source_root": str(ROOT), "connect_timeout": TIMEOUT}
    return SshTransport(HostAccess(host, **{**access, **changes}))  # type: ignore[arg-type]


def ask(transport: SshTransport, directory: str = "/nowhere") -> Reply:
    """Send the cheapest command."""
    return transport.call(["vacant", directory], 20)


def refusal(transport: SshTransport) -> str:
    """Return why a host cannot be reached, which must be reported within the timeout."""
    begun = time.monotonic()
    reply = ask(transport)
    assert time.monotonic() - begun < TIMEOUT + 10  # allows for a busy machine; the message states the limit
    assert (reply["ok"], reply["unreachable"]) == (False, True)
    assert "Traceback" not in reply["message"]
    return str(reply["message"])


def configure(farm: Farm, text: str) -> None:
    """Insert lines before those of the farm in `~/.ssh/config`, where the first value of a key counts."""
    farm.config.write_text(text + farm.config.read_text())


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


def test_the_user_of_the_ssh_configuration_is_used(farm: LoopbackFarm) -> None:
    host = farm.hosts[0]
    configure(farm, f"Host {host.address}\n  User nobody-of-this-name\n")
    assert "none of your keys is accepted" in refusal(way(host.address))
    assert "nobody-of-this-name" in host.log.read_text()


def test_a_rejected_identity_is_reported_with_a_command_to_try(farm: LoopbackFarm, tmp_path: Path) -> None:
    host, key = farm.hosts[0], tmp_path / "other"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    own = farm.config.read_text()
    farm.config.write_text(own.replace(f"{farm.home}/.ssh/id_ed25519", str(key)))
    message = refusal(way(host.address))
    assert "none of your keys is accepted" in message
    assert f"try `ssh -p {host.port} {host.address}`" in message
    # One accepted identity is enough, and a missing identity file is not an error.
    farm.config.write_text(own)
    configure(farm, f"Host *\n  IdentityFile {tmp_path}/missing\n  IdentityFile {key}\n")
    assert ask(way(host.address))["ok"]


def test_a_jump_host_is_used(farm: LoopbackFarm) -> None:
    jump, behind, _ = farm.hosts
    configure(
        farm,
        f"Host behind\n  HostName {behind.address}\n  Port {behind.port}\n  ProxyJump {jump.name}\n"
        f"Host beyond\n  HostName {behind.address}\n  Port {behind.port}\n"
        f"  ProxyJump {account().pw_name}@{jump.address}:{jump.port}\n",
    )
    before = logins(jump), logins(behind)
    assert ask(way("behind"))["ok"]
    assert ask(way("beyond"))["ok"]
    assert (logins(jump), logins(behind)) == (before[0] + 2, before[1] + 2)
    farm.stop_sshd(jump)
    assert f"{jump.address} port {jump.port}: Connection refused" in refusal(way("behind"))
    farm.start_sshd(jump)
    farm.stop_sshd(behind)
    assert behind.address in refusal(way("behind"))


def test_a_proxy_command_is_used(farm: LoopbackFarm) -> None:
    host = farm.hosts[0]
    relay = f"{sys.executable} -S {ROOT}/tests/hosts/relay.py"
    configure(farm, f"Host {host.address}\n  ProxyCommand {relay} %h %p\n")
    assert ask(way(host.address))["ok"]


def test_an_unknown_host_key_is_refused_and_the_hint_fixes_it(farm: LoopbackFarm, tmp_path: Path) -> None:
    host, known = farm.hosts[0], farm.home / ".ssh/known_hosts"
    known.write_text("")
    message = refusal(way(host.address))
    assert message.startswith("its host key is unknown")
    (hint,) = re.findall("`(.+)`", message)
    assert hint == f"ssh-keyscan -p {host.port} {host.address} >> ~/.ssh/known_hosts"
    subprocess.run(hint, shell=True, check=True, capture_output=True)
    assert ask(way(host.address))["ok"]


def test_a_changed_host_key_is_refused_and_the_hint_fixes_it(farm: LoopbackFarm) -> None:
    host, other = farm.hosts[:2]
    known = farm.home / ".ssh/known_hosts"
    own, foreign = (one.key.with_suffix(".pub").read_text().split()[1] for one in (host, other))
    known.write_text(known.read_text().replace(own, foreign))
    message = refusal(way(host.address))
    assert message.startswith("its host key has changed")
    remove, scan = re.findall("`(.+?)`", message)
    subprocess.run(remove.replace("-R", f"-f {known} -R"), shell=True, check=True, capture_output=True)
    assert refusal(way(host.address)).startswith("its host key is unknown")
    subprocess.run(scan, shell=True, check=True, capture_output=True)
    assert ask(way(host.address))["ok"]


def test_the_first_of_several_known_keys_counts(farm: LoopbackFarm) -> None:
    """For example, the key in the user's own file overrides a stale one in the system's file."""
    host, other = farm.hosts[:2]
    known = farm.home / ".ssh/known_hosts"
    text = known.read_text()
    own, foreign = (one.key.with_suffix(".pub").read_text().split()[1] for one in (host, other))
    (line,) = (line for line in text.splitlines() if own in line)
    known.write_text(f"{text}{line.replace(own, foreign)}\n")
    assert ask(way(host.address))["ok"]
    known.write_text(f"{line.replace(own, foreign)}\n{text}")
    assert refusal(way(host.address)).startswith("its host key has changed")


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


def test_an_unreadable_ssh_configuration_is_reported(farm: LoopbackFarm) -> None:
    farm.config.write_bytes(b"\xff\xfe\n")
    assert f"{farm.config} cannot be read" in refusal(way(farm.hosts[0].address))


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


def test_output_of_the_login_shell_is_ignored_or_reported(noisy: tuple[FarmHost, Path]) -> None:
    host, profile = noisy
    profile.write_text('echo Welcome; echo \'{"a": 1}\'; echo "[]"; echo 17; echo; echo beware >&2\n')
    assert ask(way(host.address))["ok"]
    # But not if it is too long.
    profile.write_text("yes Welcome | head -200\n")
    assert refusal(way(host.address)).startswith("FlagScale does not start there")
    # The output of a shell that ends at once is quoted.
    profile.write_text("echo the disk of your home is away >&2; exit 1\n")
    assert refusal(way(host.address)) == "FlagScale does not start there: the disk of your home is away"
    # A shell that never runs the command is reported in time.
    profile.write_text("sleep 30\n")
    assert refusal(way(host.address)) == "connected, but it did not answer within 4 s"


def test_one_connection_serves_all_commands(farm: LoopbackFarm) -> None:
    host = farm.hosts[1]
    before, transport = logins(host), way(host.address)
    assert all(ask(transport)["ok"] for _ in range(5))
    assert logins(host) == before + 1
    # A single process on the host answers all of them.
    assert len(farm.processes(host)) == 1


def test_two_commands_can_run_at_once_on_one_host(farm: LoopbackFarm, make_job: MakeJob) -> None:
    """A stop does not wait for the start that it ends."""
    job = make_job(farm, "rank", hosts=1, channel=None, before_start="sleep 30 || sleep 30")
    host = farm.hosts[0]
    before, transport = logins(host), way(host.address)
    words = [job.plan.exp_dir, "0", job.plan.run_id]
    job.files.write_launch(job.plan, scripts(job.plan), "", {})
    with ThreadPoolExecutor(1) as pool:
        start = pool.submit(transport.call, ["start", *words], 60)
        wait_until(lambda: bool(job.left(host)), "the start")
        begun = time.monotonic()
        assert transport.call(["stop", *words], 60)["message"] == "stopped"
        assert time.monotonic() - begun < 8
        assert start.result(10) == {"ok": False, "message": "stopped", "stopped": True}
    assert logins(host) == before + 1
    assert not job.left(host)


def test_a_lost_connection_is_reported_and_reopened(farm: LoopbackFarm, make_job: MakeJob) -> None:
    job = make_job(farm, "rank", hosts=1, channel=None, before_start="sleep 5")
    host = farm.hosts[0]
    transport = way(host.address)
    words = [job.plan.exp_dir, "0", job.plan.run_id]
    job.files.write_launch(job.plan, scripts(job.plan), "", {})
    with ThreadPoolExecutor(1) as pool:
        start = pool.submit(transport.call, ["start", *words], 60)
        wait_until(lambda: bool(job.left(host)), "the start")
        _kill_connections(farm, host)
        reply = start.result(5)
    assert reply["ok"] is False
    assert reply["unreachable"]
    assert reply["message"].startswith("the connection was lost")
    before = logins(host)
    assert ask(transport)["ok"]
    # The start goes on, and the next command finds the job.
    wait_until(lambda: transport.call(["status", *words], 20).get("phase") == "running", "the job")
    # The connection is lost between two commands.
    _kill_connections(farm, host)
    wait_until(lambda: transport.call(["stop", *words], 20)["ok"], "the stop", 10)
    assert logins(host) == before + 2
    assert not job.left(host)


def test_a_connection_lost_while_opening_a_session_is_reported() -> None:
    """paramiko raises the error that ended its connection."""

    def lost(*words: object, **named: object) -> None:
        raise EOFError

    reach = HostAccess("node1", sys.executable, str(ROOT), connect_timeout=TIMEOUT)
    with pytest.raises(Unreachable, match="cannot open a session: the connection was lost"):
        Session(SimpleNamespace(exec_command=lost), reach)  # type: ignore[arg-type]


def _kill_connections(farm: LoopbackFarm, host: FarmHost) -> None:
    for process in farm.processes(host):
        if "flagscale.node serve" in command_line(process):
            for server in [parent for parent in process.parents() if is_sshd(parent)][:1]:
                server.kill()


def test_values_and_paths_arrive_verbatim(
    farm: LoopbackFarm, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exp_dir = tmp_path / HOSTILE.replace("/", "_")
    job = make_job(
        farm,
        "rank",
        hosts=2,
        exp_dir=exp_dir,
        name=HOSTILE,
        env={"VALUE": HOSTILE},
        argv=lambda rank: ("--option", HOSTILE, "", "-x", "--", "\t"),
    )
    job.start({"SECRET_KEY": HOSTILE})
    for rank, host in enumerate(job.hosts):
        reported = job.agent_report(rank)
        assert reported["argv"][2:] == ["rank", "--option", HOSTILE, "", "-x", "--", "\t"]
        assert reported["environ"]["VALUE"] == reported["environ"]["SECRET_KEY"] == HOSTILE
        assert reported["environ"]["FARM_HOST"] == host.name
        assert reported["cwd"] == str(exp_dir)
    status = job.status()
    assert (status.plan.name, status.phase) == (HOSTILE, "running")
    assert {reply["message"] for reply in job.stop().values()} == {"stopped"}
    for folder in (tmp_path, farm.directory):
        assert not list(folder.rglob("hostile-x*"))
    for folder in (Path(account().pw_dir), Path("/"), ROOT):
        assert not (folder / "hostile-x").exists()


def test_paths_of_the_session_are_never_interpreted_by_a_shell(farm: LoopbackFarm, tmp_path: Path) -> None:
    """These are the only two values on the command line: the interpreter and FlagScale's folder."""
    folder = tmp_path / HOSTILE.replace("/", "_")
    folder.mkdir()
    (folder / "root").symlink_to(ROOT)
    host = farm.hosts[0].address
    assert "FlagScale does not start there" in refusal(way(host, python=HOSTILE))
    reply = ask(way(host, source_root=f"{folder}/root"), HOSTILE)
    assert reply == {"ok": True, "message": "vacant"}
    for place in (tmp_path, Path(account().pw_dir), Path("/"), Path(os.getcwd())):
        assert not (place / "hostile-x").exists()


def test_nothing_is_left_after_the_launcher_ends(farm: LoopbackFarm) -> None:
    host = farm.hosts[0]
    program = (
        "import sys, time; from flagscale.remote.ssh import SshTransport\n"
        "from flagscale.remote.transport import HostAccess\n"
        "way = SshTransport(HostAccess(sys.argv[1], sys.executable, sys.argv[2]))\n"
        "print(way.call(['vacant', '/nowhere'], 20), flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, host.address, str(ROOT)],
        env={**farm.environment(), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as launcher:
        assert launcher.stdout
        assert "vacant" in launcher.stdout.readline()
        (session,) = farm.processes(host)
        assert isinstance(session, psutil.Process)
        launcher.kill()
    wait_until(lambda: not farm.processes(host), "the end of the session", 5)
