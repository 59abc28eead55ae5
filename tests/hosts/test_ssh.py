"""Sessions over SSH with real servers: commands, values, losses, and what is left afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from flagscale.plan.render import scripts
from flagscale_testing.farm.credentials import FarmHost, account
from flagscale_testing.farm.farm import alive, is_sshd, wait_until
from flagscale_testing.farm.loopback import LoopbackFarm
from tests.hosts.access import TIMEOUT, ask, configure, refusal, way
from tests.hosts.conftest import HOSTILE, ROOT, MakeJob, command_line, logins


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
    transport = way(host.address)
    words = [job.plan.exp_dir, "0", job.plan.run_id]
    job.files.write_launch(job.plan, scripts(job.plan), "", {})
    with ThreadPoolExecutor(1) as pool:
        start = pool.submit(transport.call, ["start", *words], 60)
        wait_until(lambda: bool(job.left(host)), "the start")
        begun = time.monotonic()
        assert transport.call(["stop", *words], 60)["message"] == "stopped"
        assert time.monotonic() - begun < 8
        assert start.result(10) == {"ok": False, "message": "stopped", "stopped": True}
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


def _kill_connections(farm: LoopbackFarm, host: FarmHost) -> None:
    for server in _servers(farm, host):
        server.kill()


def _servers(farm: LoopbackFarm, host: FarmHost) -> list[psutil.Process]:
    """Return the sshd of each session."""
    sessions = [one for one in farm.processes(host) if "flagscale.node serve" in command_line(one)]
    return [server for one in sessions for server in [*filter(is_sshd, one.parents())][:1]]


@pytest.mark.slow
def test_a_silent_connection_is_lost_in_time(farm: LoopbackFarm) -> None:
    host = farm.hosts[0]
    transport = way(host.address)
    assert ask(transport)["ok"]
    (server,) = _servers(farm, host)
    server.suspend()
    begun = time.monotonic()
    message = transport.call(["vacant", "/nowhere"], 60)["message"]
    assert time.monotonic() - begun < 2 * TIMEOUT + 10  # allows for a busy machine
    assert message.startswith("the connection was lost (it ended): Timeout, server ")
    server.resume()


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
        "print(way.call(['vacant', '/nowhere'], 20), 'paramiko' in sys.modules, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, host.address, str(ROOT)],
        env={**farm.environment(), "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    ) as launcher:
        assert launcher.stdout
        printed = launcher.stdout.readline()
        assert "vacant" in printed
        assert "False" in printed, "importing paramiko takes 0.3 s"
        (session,) = farm.processes(host)
        assert isinstance(session, psutil.Process)
        (client,) = psutil.Process(launcher.pid).children()
        assert os.getsid(client.pid) == client.pid, "Ctrl-C would reach it"
        launcher.kill()
    wait_until(lambda: not farm.processes(host) and not alive(client), "the end of the session", 5)


def test_a_login_that_hangs_ends_with_the_launcher(farm: LoopbackFarm) -> None:
    program = (
        "import signal, sys; from flagscale.remote.hosts import at_once\n"
        "from flagscale.remote.ssh import SshTransport; from flagscale.remote.transport import HostAccess\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit('interrupted'))\n"
        "way = SshTransport(HostAccess('127.0.0.1', '/bin/true', '', ssh_port=int(sys.argv[1])))\n"
        "at_once(lambda words: way.call(words, 20), [['vacant', '/nowhere']])"
    )
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        subprocess.Popen(
            [sys.executable, "-c", program, str(silent.getsockname()[1])],
            env={**farm.environment(), "PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        ) as launcher,
        silent.accept()[0],
    ):
        (client,) = psutil.Process(launcher.pid).children()
        launcher.send_signal(signal.SIGINT)
        assert launcher.communicate()[1] == "interrupted\n"
        # The kernel ends it a moment after the launcher, and long before connect_timeout.
        psutil.wait_procs([client], timeout=5)
        assert not alive(client), "it would wait for connect_timeout"


def test_a_transport_that_is_dropped_leaves_no_process(farm: LoopbackFarm) -> None:
    before = {*psutil.Process().children()}
    transport = way(farm.hosts[0].address)
    assert ask(transport)["ok"]
    (client,) = {*psutil.Process().children()} - before
    del transport
    assert not client.is_running()


def test_an_existing_connection_of_the_user_is_used(farm: LoopbackFarm) -> None:
    """For example, one to a host that asks for a second factor."""
    host, socket = farm.hosts[0], farm.home / ".ssh/master"
    configure(farm, f"ControlMaster auto\nControlPath {socket}\nControlPersist yes\n")
    assert ask(way(host.name))["ok"]
    assert not socket.exists(), "our own connection must end with us"
    subprocess.run(farm.ssh_command(host, "true"), check=True, stderr=subprocess.DEVNULL)
    before = logins(host)
    try:
        assert ask(way(host.name))["ok"]
        assert "No such file" in refusal(way(host.name, python="/no/such/python"))
        assert logins(host) == before
    finally:
        subprocess.run(["ssh", "-S", str(socket), "-O", "exit", "any"], check=True, capture_output=True)


def test_files_below_home_are_used_if_they_are_not_those_of_the_account(farm: LoopbackFarm) -> None:
    host = farm.hosts[0]
    farm.config.write_text(f"Host short\n  HostName {host.address}\n  Port {host.port}\n")
    assert ask(way("short"))["ok"]
    (farm.home / ".ssh/known_hosts").write_text("")
    assert f">> {farm.home}/.ssh/known_hosts" in refusal(way("short"))
