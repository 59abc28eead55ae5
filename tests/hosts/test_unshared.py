"""Hosts without a shared file system: files are sent, and output and metrics are read back."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagscale.errors import FlagScaleError
from flagscale.remote.ssh import SshTransport
from flagscale.run.rundir import RunDir
from flagscale.run.state import Reply
from flagscale.status.log_tail import LogTail
from flagscale.values import Recovery
from flagscale_testing.farm.farm import wait_until
from flagscale_testing.farm.fixtures import MakeNamespaceFarm
from flagscale_testing.farm.namespaces import NamespaceFarm
from tests.hosts.conftest import FarmJob, MakeJob, user_of

METRICS = [
    {"iteration": 3, "lm_loss": 7.25, "iteration_ms": 100.0, "time": 4e9, "train_iters": 10},
    {"iteration": 4, "lm_loss": 7.125, "iteration_ms": 100.0, "time": 4e9, "train_iters": 10},
]


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path below which each host has its own files."""
    return tmp_path_factory.mktemp("private") / "the disk"


@pytest.fixture(scope="module")
def running_farm(make_namespace_farm: MakeNamespaceFarm, disk: Path) -> NamespaceFarm:
    return make_namespace_farm(3, [disk])


@pytest.fixture
def farm(running_farm: NamespaceFarm, monkeypatch: pytest.MonkeyPatch, disk: Path) -> Iterator[NamespaceFarm]:
    with user_of(running_farm, monkeypatch):
        yield running_farm
    for host in running_farm.hosts:
        running_farm.run(host, ["sh", "-c", 'rm -rf "$0"/*', str(disk)]).check_returncode()


@pytest.fixture
def make_unshared(farm: NamespaceFarm, make_job: MakeJob, disk: Path, tmp_path: Path) -> MakeJob:
    """A function that makes jobs; their run directory is `disk/a b` on two hosts and `disk/c` on the last."""

    def make(*behaviours: str, launcher: str = "run", **changes: object) -> FarmJob:
        here = tmp_path / launcher
        there = {host.address: {str(here): str(disk / folder(rank))} for rank, host in enumerate(farm.hosts)}
        return make_job(farm, *behaviours, exp_dir=here, shared_fs=False, host_paths=there, **changes)

    return make


def folder(rank: int) -> str:
    return "c" if rank == 2 else "a b"


def there(job: FarmJob, rank: int) -> RunDir:
    return RunDir(Path(job.plan.on_host(job.plan.hosts[rank].name).exp_dir))


def files_of(farm: NamespaceFarm, rank: int, directory: Path) -> dict[str, str]:
    """Return the files of a host below a directory, with their modes."""
    host = farm.hosts[rank]
    listed = farm.run(host, ["find", str(directory), "-type", "f", "-printf", "%P %m\\n"]).stdout
    return dict(line.rsplit(" ", 1) for line in listed.splitlines())


def test_each_host_receives_its_files_and_keeps_no_secrets(
    farm: NamespaceFarm, make_unshared: MakeJob, disk: Path
) -> None:
    job = make_unshared("rank", before_start="stat -c 'mode %a' logs/pids/*.secrets.json")
    job.start({"API_KEY": "geheim"})
    for rank, (host, node) in enumerate(zip(farm.hosts, job.plan.nodes, strict=True)):
        reported = job.agent_report(rank)
        assert reported["environ"]["API_KEY"] == "geheim"
        assert reported["environ"]["FARM_HOST"] == host.name
        assert reported["cwd"] == str(disk / folder(rank))
        files = files_of(farm, rank, disk)
        below = folder(rank)
        scripts = f"{below}/logs/scripts/{node.host.label}"
        assert {
            name: mode for name, mode in files.items() if "report" not in name and "pids" not in name
        } == {
            f"{below}/plan.json": "644",
            f"{scripts}_run.sh": "755",
            f"{scripts}_stop.sh": "755",
            f"{below}/logs/{node.host.label}.output": "644",
        }
        assert not [name for name in files if "secrets" in name or ".writing" in name]
        assert "mode 600" in job.log(rank)
        written = farm.run(host, ["grep", "-rl", "geheim", str(disk)]).stdout.splitlines()
        assert all("/report " in name for name in written)
        plan = json.loads(farm.run(host, ["cat", str(there(job, rank).plan)]).stdout)
        # The plan is the same on all hosts: each inserts its own paths when it reads the plan.
        assert (plan["run_id"], plan["exp_dir"]) == (job.plan.run_id, job.plan.exp_dir)
    # This machine has the launcher's files and none that the hosts wrote.
    assert not list(job.files.path.rglob("*.output"))
    assert not list(job.files.path.rglob("*.secrets.json"))


def test_output_metrics_and_state_are_read_back(farm: NamespaceFarm, make_unshared: MakeJob) -> None:
    job = make_unshared("rank", before_start='echo "prepared $FLAGSCALE_HOST_RANK"').start()
    tail = LogTail(job.plan)
    tail.skip_earlier_runs()
    lines = list(tail.lines())
    for rank, host in enumerate(job.plan.hosts):
        assert f"{host.name}: prepared {rank}" in lines
        assert any(
            line.startswith(f"{host.name}: === run {job.plan.run_id} on {host.name}") for line in lines
        )
    assert list(tail.lines()) == []
    _append(farm, 1, str(there(job, 1).output(job.plan.hosts[1])), "a late line\nhalf a")
    assert list(tail.lines()) == [f"{job.plan.hosts[1].name}: a late line"]
    assert list(tail.lines(last=True)) == [f"{job.plan.hosts[1].name}: half a"]

    # The last rank writes the metrics file.
    assert job.status().progress is None
    text = "".join(json.dumps(record) + "\n" for record in METRICS)
    _append(farm, 2, str(there(job, 2).metrics), text)
    status = job.status()
    assert (status.phase, status.exit_code) == ("running", 0)
    assert status.progress is not None
    assert (status.progress.iteration, status.progress.record["lm_loss"]) == (4, 7.125)
    for rank in range(3):
        job.agent_report(rank)  # its engine has started the ranks
    assert [host.processes for host in job.status().hosts] == [4, 4, 4]
    logs = job.command("logs").stdout
    assert f"{job.plan.hosts[1].name}: a late line" in logs
    query = json.loads(job.command("query", "output=json").stdout)
    assert (query["state"], query["metrics"]["iteration"]) == ("running", 4)

    stop = job.command("stop")
    assert (stop.returncode, stop.stdout.count("stopped")) == (0, 3)
    assert not any(job.left(host) for host in farm.hosts)
    assert job.phases() == ["stopped"] * 3


def test_another_launcher_is_refused_while_the_job_is_running(
    farm: NamespaceFarm, make_unshared: MakeJob
) -> None:
    """It has its own run directory, so it does not know about the job; the hosts do."""
    job = make_unshared("rank").start()
    other = make_unshared("rank", launcher="elsewhere")
    with pytest.raises(FlagScaleError) as refused:
        other.start({"API_KEY": "geheim"})
    message = str(refused.value)
    assert f"run {job.plan.run_id} is still running in " in message
    assert "stop it first" in message
    assert job.phases() == ["running"] * 3
    assert not any(other.left(host) for host in farm.hosts)
    assert not [name for rank in range(3) for name in files_of(farm, rank, _disk(job)) if "secrets" in name]
    # Nor has it changed the plan of the first job, which can still be stopped.
    assert all(reply["ok"] for reply in job.stop().values())
    other.start()
    assert other.phases() == ["running"] * 3


def test_a_failed_start_leaves_nothing(farm: NamespaceFarm, make_unshared: MakeJob) -> None:
    line = 'if [ "$FLAGSCALE_HOST_RANK" = 2 ]; then echo broken; exit 4; fi'
    job = make_unshared("rank", before_start=line)
    with pytest.raises(FlagScaleError, match="before_start ended with exit code 4: broken"):
        job.start({"API_KEY": "geheim"})
    assert not any(job.left(host) for host in farm.hosts)
    assert not [name for rank in range(3) for name in files_of(farm, rank, _disk(job)) if "secrets" in name]
    make_unshared("rank").start()


def test_no_host_starts_before_all_have_their_files(
    farm: NamespaceFarm, make_unshared: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop that arrives before the plan would find nothing to stop, and a start would follow the files."""
    job = make_unshared("rank", before_start='[ "$FLAGSCALE_HOST_RANK" != 0 ]')
    slow, send = farm.hosts[2].address, SshTransport.call

    def call(way: SshTransport, words: list[str], seconds: float) -> Reply:
        if words[0] == "put" and way._access.host == slow:
            time.sleep(1)
        return send(way, words, seconds)

    monkeypatch.setattr(SshTransport, "call", call)
    begun = time.monotonic()
    with pytest.raises(FlagScaleError, match="before_start ended with exit code 1"):
        job.start({"API_KEY": "geheim"})
    assert time.monotonic() - begun < job.plan.start_timeout - 5
    assert not any(job.left(host) for host in farm.hosts)
    assert not [name for rank in range(3) for name in files_of(farm, rank, _disk(job)) if "secrets" in name]
    assert job.phases()[2] == "stopped"


def test_a_restart_does_not_need_the_launcher(farm: NamespaceFarm, make_unshared: MakeJob) -> None:
    job = make_unshared("rank", recovery=Recovery(max_restarts=1, restart_timeout=20))
    job.start({"API_KEY": "geheim"})
    first = job.engines()
    job.member(0, "engine").kill()
    job.wait_for_engines(besides=first)
    wait_until(lambda: job.phases() == ["running"] * 3, "the second attempt")
    # The secret was sent with the first start, and the supervisors still have it.
    assert [job.agent_report(rank)["environ"]["API_KEY"] for rank in range(3)] == ["geheim"] * 3


def _disk(job: FarmJob) -> Path:
    return there(job, 0).path.parent


def _append(farm: NamespaceFarm, rank: int, path: str, text: str) -> None:
    words = ["sh", "-c", 'printf %s "$1" >> "$0"', path, text]
    farm.run(farm.hosts[rank], words).check_returncode()
