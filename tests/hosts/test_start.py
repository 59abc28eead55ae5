"""A start over SSH: either all hosts run or nothing is left on any, and the failed hosts are named."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flagscale.config.host_names import expand
from flagscale.errors import FlagScaleError, HostError
from flagscale.node.channel import SILENCE
from flagscale_testing.disk import small_file_system
from flagscale_testing.farm.farm import wait_until
from flagscale_testing.farm.loopback import LoopbackFarm
from tests.hosts.conftest import FarmJob, MakeJob

SLOW_START = "sleep 60 || sleep 60"


def on(rank: int, line: str) -> str:
    """Return a line of before_start that takes effect on one host only."""
    return f'if [ "$FLAGSCALE_HOST_RANK" = {rank} ]; then {line}; fi'


def error_of(action: Callable[[], object]) -> str:
    try:
        action()
    except FlagScaleError as error:
        return str(error)
    return ""


def blamed(error: str) -> list[str]:
    """Return the hosts that the error of a failed start names; those that say the same share a line."""
    return [host for names in re.findall(r"(?m)^- (\S+): ", error) for host in expand(names)]


def assert_nothing_is_left(job: FarmJob) -> None:
    assert [process for host in job.hosts for process in job.left(host)] == []
    assert not list(job.files.path.rglob("*.secrets.json"))


def test_a_job_on_three_hosts_is_started_reported_and_stopped(farm: LoopbackFarm, make_job: MakeJob) -> None:
    job = make_job(farm, "rank", "rank deaf").start({"API_KEY": "geheim"})
    assert job.phases() == ["running"] * 3
    reported = [job.agent_report(rank) for rank in range(3)]
    assert [one["environ"]["FARM_HOST"] for one in reported] == [host.name for host in farm.hosts]
    assert {one["environ"]["API_KEY"] for one in reported} == {"geheim"}
    assert not list(job.files.path.rglob("*.secrets.json"))
    query = job.command("query")
    assert query.returncode == 0, query.stderr
    for node in job.plan.nodes:
        assert f"host {node.host.rank}  {node.host.name}  running\n" in query.stdout
    logs = job.command("logs").stdout
    for host in job.plan.hosts:
        assert f"{host.name}: === run {job.plan.run_id} on {host.name}, " in logs
    refused = error_of(make_job(farm, "rank").start)
    assert "a job is still running" in refused
    stop = job.command("stop")
    assert (stop.returncode, stop.stdout.count("stopped")) == (0, 3)
    assert_nothing_is_left(job)
    assert job.command("stop").stdout.count("nothing was running") == 3


def test_one_host_that_fails_to_prepare_rolls_the_start_back(farm: LoopbackFarm, make_job: MakeJob) -> None:
    job = make_job(farm, "rank", before_start=on(1, "echo no such module >&2; exit 3"))
    error = error_of(lambda: job.start({"API_KEY": "geheim"}))
    assert error.splitlines() == [
        "the job did not start; hosts that had started were stopped again:",
        f"- {farm.hosts[1].address}: experiment.cmds.before_start ended with exit code 3: no such module",
    ]
    assert_nothing_is_left(job)
    assert job.phases() == ["stopped", "failed", "stopped"]
    make_job(farm, "rank").start()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of 64 KiB."""
    with small_file_system(tmp_path / "disk", "64k") as folder:
        yield folder


def test_a_full_disk_on_one_host_fails_the_start(
    farm: LoopbackFarm, make_job: MakeJob, small_disk: Path
) -> None:
    (small_disk / "ballast").write_bytes(bytes(64 << 10))
    full = farm.hosts[2].address
    job = make_job(farm, "rank")
    job = make_job(farm, "rank", host_paths={full: {job.plan.exp_dir: str(small_disk / "run")}})
    error = error_of(lambda: job.start({"API_KEY": "geheim"}))
    assert blamed(error) == [full]
    assert "No space left on device" in error
    assert str(small_disk) in error
    job.wait_until_clean()  # the sessions that did not become supervisors
    assert_nothing_is_left(job)


def test_an_impossible_run_directory_on_one_host_fails_the_start(
    farm: LoopbackFarm, make_job: MakeJob
) -> None:
    bad = farm.hosts[0].address
    job = make_job(farm, "rank")
    job = make_job(farm, "rank", host_paths={bad: {job.plan.exp_dir: "/proc/version/run"}})
    error = error_of(job.start)
    assert blamed(error) == [bad]
    assert "Not a directory" in error
    job.wait_until_clean()  # the sessions that did not become supervisors
    assert_nothing_is_left(job)


def test_one_unreachable_host_fails_the_start(farm: LoopbackFarm, make_job: MakeJob) -> None:
    away = farm.hosts[1]
    farm.stop_sshd(away)
    job = make_job(farm, "rank")
    begun = time.monotonic()
    error = error_of(job.start)
    assert time.monotonic() - begun < 15
    assert error.splitlines()[1:] == [
        f"- {away.address}: {away.address} port {away.port}: Connection refused"
    ]
    assert error.splitlines()[0] == "the job was not started:"
    job.wait_until_clean()  # the sessions that did not become supervisors
    assert_nothing_is_left(job)
    assert [job.phases()[rank] for rank in (0, 2)] == ["unknown"] * 2
    assert not list(job.files.path.rglob("*.output"))


def test_all_bad_hosts_are_reported_together(farm: LoopbackFarm, make_job: MakeJob) -> None:
    farm.stop_sshd(farm.hosts[0])
    job = make_job(farm, "rank", python="/no/python")
    error = error_of(job.start)
    assert blamed(error) == [host.address for host in farm.hosts]
    assert error.count("FlagScale does not start there") == 1
    assert error.count("Connection refused") == 1


def test_a_host_that_hangs_is_named(farm: LoopbackFarm, make_job: MakeJob) -> None:
    job = make_job(farm, "rank", start_timeout=8.0, before_start=on(2, SLOW_START))
    begun = time.monotonic()
    error = error_of(job.start)
    assert time.monotonic() - begun < 8 + 10
    assert f": not heard from within 8 s: {farm.hosts[2].address}" in error
    assert blamed(error)[0] == farm.hosts[0].address
    assert_nothing_is_left(job)


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_a_start_whose_launcher_was_killed_runs_everywhere_or_nowhere(
    farm: LoopbackFarm, make_job: MakeJob, seed: int
) -> None:
    """Hosts that have already begun end by themselves unless all hosts run."""
    job = make_job(farm, "rank", start_timeout=4.0)
    launching = job.launch()
    wait_until(lambda: job.files.plan.exists(), "the plan")
    time.sleep(random.Random(seed).uniform(0, 0.5 * seed))
    launching.kill()
    launching.communicate()

    def settled() -> bool:
        if engines := job.engines():
            return len(engines) == 3 and job.phases() == ["running"] * 3
        # A session may have received the start without having executed it yet.
        return not any(map(farm.processes, job.hosts))

    # A member that has begun waits slightly longer than the first host would, which may be missing.
    wait_until(settled, "all or none", 4 + 10 + 5)
    phases = job.phases()
    assert set(phases) == {"running"} if job.engines() else "running" not in phases
    assert all(reply["ok"] for reply in job.stop().values())
    assert_nothing_is_left(job)
    make_job(farm, "rank").start()


def test_a_start_goes_on_if_its_launcher_is_killed_while_hosts_prepare(
    farm: LoopbackFarm, make_job: MakeJob
) -> None:
    job = make_job(farm, "rank", before_start=SLOW_START)
    launching = job.launch()
    wait_until(lambda: all(job.left(host) for host in job.hosts), "the start")
    launching.kill()
    launching.communicate()
    assert job.phases() == ["starting"] * 3
    assert "a job is still running" in error_of(make_job(farm, "rank").start)
    assert {reply["message"] for reply in job.stop().values()} == {"stopped"}
    assert_nothing_is_left(job)


def test_ctrl_c_during_the_start_rolls_it_back(farm: LoopbackFarm, make_job: MakeJob) -> None:
    job = make_job(farm, "rank", before_start=SLOW_START)
    launching = job.launch()
    wait_until(lambda: all(job.left(host) for host in job.hosts), "the start")
    begun = time.monotonic()
    launching.send_signal(signal.SIGINT)
    _, error = launching.communicate(timeout=30)
    assert time.monotonic() - begun < 10
    assert "KeyboardInterrupt" in error
    assert_nothing_is_left(job)
    assert job.phases() == ["stopped"] * 3
    make_job(farm, "rank").start()


def test_a_stop_during_the_start_is_named(farm: LoopbackFarm, make_job: MakeJob) -> None:
    job = make_job(farm, "rank", before_start=SLOW_START)
    with ThreadPoolExecutor() as pool:
        starting = pool.submit(error_of, job.start)
        wait_until(lambda: all(job.left(host) for host in job.hosts), "the start")
        job.stop()
        assert starting.result() == "the job did not start: it was stopped by another command meanwhile"
    assert_nothing_is_left(job)


def test_only_one_of_two_simultaneous_launchers_starts(farm: LoopbackFarm, make_job: MakeJob) -> None:
    jobs = [make_job(farm, "rank"), make_job(farm, "rank")]
    with ThreadPoolExecutor() as pool:
        errors = list(pool.map(lambda job: error_of(job.start), jobs))
    (error,) = filter(None, errors)
    assert "another command is starting a job" in error or "a job is still running" in error
    winner, loser = sorted(jobs, key=lambda job: bool(errors[jobs.index(job)]))
    assert winner.phases() == ["running"] * 3
    assert not loser.engines()
    assert winner.files.read_plan() == winner.plan


def test_a_stop_reports_an_unreachable_host_and_stops_the_others(
    farm: LoopbackFarm, make_job: MakeJob
) -> None:
    """The others are stopped; the host's own supervisor then ends its part, as the others are gone."""
    away = farm.hosts[2]
    for _ in range(5):
        job = make_job(farm, "rank", "rank deaf").start()
        farm.stop_sshd(away)
        supervisor = job.member(2, "supervisor")
        supervisor.suspend()  # otherwise the first host would still reach it
        stop = job.command("stop")
        supervisor.resume()
        assert stop.returncode == 1
        if "  stopped\n" in stop.stdout:
            break
        # This machine is so slow that the others have lost the suspended host before the stop reached them.
        job.wait_until_clean()
        farm.start_sshd(away)
        assert f"nothing was heard from it for {SILENCE:g} s" in job.first_failure()[1]
    lines = stop.stdout.splitlines()
    # The second host may end with the first one before it is asked itself.
    assert all(line.endswith(("  stopped", "  nothing was running")) for line in lines[:2]), stop.stdout
    assert any(line.endswith("  stopped") for line in lines[:2]), stop.stdout
    assert lines[2] == f"host 2  {away.address}  {away.address} port {away.port}: Connection refused"
    job.wait_until_clean()
    farm.start_sshd(away)
    assert job.command("stop").returncode == 0


def test_an_engine_that_is_missing_on_all_hosts_is_reported(farm: LoopbackFarm, make_job: MakeJob) -> None:
    job = make_job(farm, "rank", engine_program="/no/such/engine")
    with pytest.raises(HostError, match=r"the engine cannot be started: .*/no/such/engine"):
        job.start()
    assert_nothing_is_left(job)
