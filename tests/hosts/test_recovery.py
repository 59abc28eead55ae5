"""After any death on one of three hosts, the run soon ends or goes on everywhere and reports the cause."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack

import psutil
import pytest

from flagscale.errors import HostError, RollBackError
from flagscale.node.channel import dial
from flagscale.node.rendezvous import COMING_BACK
from flagscale.remote import launcher
from flagscale.run.env import CHANNEL_SECRET
from flagscale.status.model import failed_attempts
from flagscale.values import Recovery
from flagscale_testing.farm.farm import alive, wait_until
from flagscale_testing.farm.fixtures import MakeNamespaceFarm
from flagscale_testing.farm.namespaces import NamespaceFarm
from tests.hosts.conftest import (
    CLEAN_WITHIN,
    FarmJob,
    MakeJob,
    command_line,
    cut_off,
    left,
    powered_off,
)

RANKS = ("rank", "rank deaf", "rank daemon deaf")


@pytest.fixture(scope="module")
def running_farm(make_namespace_farm: MakeNamespaceFarm) -> NamespaceFarm:
    return make_namespace_farm(3)


def name(job: FarmJob, rank: int) -> str:
    return job.plan.hosts[rank].name


@pytest.mark.parametrize(
    ("rank", "victim", "cause"),
    [
        (1, "engine", "the agent was killed by SIGKILL"),
        (1, "supervisor", "the supervisor was killed; its guard ended the processes of the run"),
        (0, "supervisor", "the supervisor was killed; its guard ended the processes of the run"),
    ],
)
def test_one_death_ends_the_run_on_all_hosts(
    farm: NamespaceFarm,
    make_job: MakeJob,
    decoys: list[psutil.Process],
    rank: int,
    victim: str,
    cause: str,
    record_property: Callable[[str, object], None],
) -> None:
    job = make_job(farm, *RANKS).start()
    job.member(rank, victim).kill()
    record_property("seconds to clean", job.wait_until_clean())
    assert job.phases() == ["failed"] * 3
    assert job.first_failure() == (rank, cause)
    assert all(alive(decoy) for decoy in decoys)
    # The other hosts name that host as well.
    for other, state in enumerate(job.states()):
        if other != rank:
            assert state is not None
            assert state.failure is not None
            assert state.failure.is_victim
            assert f"ended because of {name(job, rank)}" in state.failure.message
    assert job.status().exit_code == 1
    # The run directory and the hosts are free for the next start.
    again = make_job(farm, "rank").start()
    assert again.phases() == ["running"] * 3
    assert {reply["message"] for reply in again.stop().values()} == {"stopped"}
    assert not any(again.left(host) for host in farm.hosts)


def test_a_supervisor_that_hangs_does_not_delay_the_others(
    farm: NamespaceFarm, make_job: MakeJob, record_property: Callable[[str, object], None]
) -> None:
    """It neither replies nor ends: the others do not wait for it, and a stop ends its processes."""
    job = make_job(farm, "rank").start()
    job.member(1, "supervisor").suspend()
    record_property("seconds to clean", job.wait_until_clean(0, 2))
    assert f"{name(job, 1)}: nothing was heard from it" in job.first_failure()[1]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_a_host_that_is_cut_off_ends_the_run_on_all_hosts(
    farm: NamespaceFarm,
    make_job: MakeJob,
    decoys: list[psutil.Process],
    rank: int,
    record_property: Callable[[str, object], None],
) -> None:
    job = make_job(farm, "rank", connect_timeout=6.0).start()
    with cut_off(farm, farm.hosts[rank]):
        # The isolated host ends its part as well, because it does not hear from the others.
        record_property("seconds to clean", job.wait_until_clean())
        # A query from a launcher that stayed connected does not hang either.
        begun, status = time.monotonic(), job.status()
        assert time.monotonic() - begun < 2 * job.plan.connect_timeout + 5
        assert (status.phase, status.exit_code) == ("failed", 1)
        assert status.failure is not None
        cause = f"{name(job, rank)}: nothing was heard from it for 4 s"
        assert status.failure[1].message == f"ended because of {cause}"
        # The host cannot be reached, but has recorded how its part ended in the shared run directory.
        lonely = status.hosts[rank]
        assert (lonely.trouble, lonely.state and lonely.state.phase) == ("", "failed")
    wait_until(lambda: job.phases() == ["failed"] * 3, "the cut host's own state")
    assert all(alive(decoy) for decoy in decoys)


@pytest.mark.slow
def test_a_host_that_loses_power_ends_the_run_on_all_hosts(
    farm: NamespaceFarm, make_job: MakeJob, record_property: Callable[[str, object], None]
) -> None:
    job = make_job(farm, "rank", connect_timeout=6.0).start()
    with powered_off(farm, farm.hosts[1]):
        record_property("seconds to clean", job.wait_until_clean(0, 2))
        assert job.first_failure()[1].startswith(f"ended because of {name(job, 1)}: ")
    # When it is back, it knows that its part is over, and the next start is not blocked.
    assert job.phases() == ["failed"] * 3
    make_job(farm, "rank").start()


def test_a_death_is_followed_by_a_restart_on_all_hosts(farm: NamespaceFarm, make_job: MakeJob) -> None:
    job = make_job(farm, *RANKS, recovery=Recovery(max_restarts=1, restart_timeout=20)).start()
    first = job.engines()
    assert len(first) == 3
    job.member(2, "engine").kill()
    begun = time.monotonic()
    job.wait_for_engines(besides=first, seconds=20)
    assert time.monotonic() - begun < CLEAN_WITHIN
    wait_until(lambda: job.phases() == ["running"] * 3, "the second attempt")
    assert not any(alive(engine) for engine in first)
    # Only the new attempt is running: ranks, engine, supervisor, guard.
    whole = len(RANKS) + 3
    wait_until(lambda: all(len(job.left(host)) == whole for host in farm.hosts), "the ranks")
    ((host, attempt),) = failed_attempts(job.status())
    assert (host, attempt.number, attempt.failure.message) == (
        name(job, 2),
        0,
        "the agent was killed by SIGKILL",
    )
    assert "restart 1 of 1 in 1 s" in job.log(0)

    # No restarts are left.
    job.member(0, "engine").send_signal(signal.SIGSEGV)
    job.wait_until_clean()
    assert job.first_failure() == (0, "the agent was killed by SIGSEGV")
    assert len(failed_attempts(job.status())) == 1


def test_an_error_that_only_the_user_can_fix_ends_all_hosts_at_once(
    farm: NamespaceFarm, make_job: MakeJob
) -> None:
    """One of three hosts knows that another attempt would also fail; the others do not wait for it."""
    job = make_job(farm, "rank", recovery=Recovery(max_restarts=3, restart_timeout=300)).start()
    job.files.failure(job.plan.hosts[1]).write_text('{"message": "no such file", "exitcode": 2}')
    job.member(1, "engine").kill()
    job.wait_until_clean()
    assert job.first_failure() == (1, "no such file")
    assert not failed_attempts(job.status())


@pytest.mark.slow  # tests/node does the same on one host
def test_a_rollback_on_one_host_starts_all_hosts_again(farm: NamespaceFarm, make_job: MakeJob) -> None:
    job = make_job(farm, "rank", recovery=Recovery(max_restarts=0, restart_timeout=30)).start()
    first = job.engines()
    failure = {"message": "the loss is NaN", "rank": 1, "exitcode": RollBackError.exit_code}
    job.files.failure(job.plan.hosts[1]).write_text(json.dumps(failure))
    job.member(1, "engine").kill()
    job.wait_for_engines(besides=first, seconds=20)
    wait_until(lambda: job.phases() == ["running"] * 3, "the second attempt")
    ((host, attempt),) = failed_attempts(job.status())
    assert (host, attempt.failure.message) == (name(job, 1), "the loss is NaN")
    assert not any("restart" in job.log(rank) for rank in range(3))


def test_a_killed_supervisor_is_not_waited_for(farm: NamespaceFarm, make_job: MakeJob) -> None:
    job = make_job(farm, "rank", recovery=Recovery(max_restarts=1, restart_timeout=300)).start()
    job.member(0, "supervisor").kill()
    job.wait_until_clean(seconds=COMING_BACK + CLEAN_WITHIN)
    killed = "the supervisor was killed; its guard ended the processes of the run"
    assert job.first_failure() == (0, killed)
    assert [state and state.failure and state.failure.message for state in job.states()[1:]] == [
        f"{name(job, 0)}: the connection to its supervisor was lost"
    ] * 2


def test_a_stop_between_two_attempts_ends_the_job(farm: NamespaceFarm, make_job: MakeJob) -> None:
    job = make_job(farm, "rank", recovery=Recovery(max_restarts=5, restart_timeout=20)).start()
    job.member(1, "engine").kill()
    wait_until(lambda: not job.engines(), "the end of the attempt")
    assert all(reply["ok"] for reply in job.stop().values())
    assert not any(job.left(host) for host in farm.hosts)
    assert job.phases() == ["stopped"] * 3


def test_a_host_that_was_cut_off_joins_the_restart(farm: NamespaceFarm, make_job: MakeJob) -> None:
    job = make_job(farm, "rank", recovery=Recovery(max_restarts=1, restart_timeout=30)).start()
    first = job.engines()
    with cut_off(farm, farm.hosts[1]):
        wait_until(lambda: not job.engines(), "the end of the first attempt", CLEAN_WITHIN)
        time.sleep(2)
    job.wait_for_engines(besides=first, seconds=15)
    wait_until(lambda: job.phases() == ["running"] * 3, "the second attempt")
    assert len(job.engines()) == 3
    (attempt,) = failed_attempts(job.status())
    assert f"{name(job, 1)}: nothing was heard from it" in attempt[1].failure.message


@pytest.mark.slow
def test_a_host_that_stays_away_fails_the_restart(farm: NamespaceFarm, make_job: MakeJob) -> None:
    job = make_job(
        farm, "rank", recovery=Recovery(max_restarts=1, restart_timeout=2), connect_timeout=6.0
    ).start()
    with powered_off(farm, farm.hosts[2]):
        job.wait_until_clean(0, 1, seconds=20)
        assert job.first_failure()[1] == f"not heard from within 2 s: {name(job, 2)}"


@pytest.mark.parametrize("loss", [pytest.param("power", marks=pytest.mark.slow), "network"])
def test_a_job_continues_without_a_lost_host(farm: NamespaceFarm, make_job: MakeJob, loss: str) -> None:
    job = make_job(
        farm,
        "rank",
        options=lambda rank: {"nnodes": "3", "node-rank": str(rank)},
        recovery=Recovery(max_restarts=1, restart_timeout=5, fewer_hosts=(2,)),
    ).start()
    first = job.engines()
    with ExitStack() as lost:
        lost.enter_context({"power": powered_off, "network": cut_off}[loss](farm, farm.hosts[1]))
        job.wait_for_engines(0, 2, besides=first, seconds=30)
        words = [command_line(job.member(rank, "engine")).rpartition("--nnodes")[2] for rank in (0, 2)]
        assert words == [" 2 --node-rank 0", " 2 --node-rank 1"]
    if loss == "network":
        job.wait_until_clean(1)
        state = job.states()[1]
        assert state is not None
        assert state.failure is not None
        assert state.failure.message == "this host was too late: the job continues without it"
        assert len(job.engines()) == 2, "the return of the host does not disturb the others"
    phases = job.phases()
    assert [phases[rank] for rank in (0, 2)] == ["running"] * 2
    assert all(reply["ok"] for reply in job.stop().values())
    assert not any(job.left(host) for host in farm.hosts)


def test_a_hang_on_one_host_ends_the_job_on_all_hosts(farm: NamespaceFarm, make_job: MakeJob) -> None:
    job = make_job(farm, "rank", "rank deaf", recovery=Recovery(hang_timeout=3)).start()
    begun = time.monotonic()
    job.files.heartbeat(job.plan.hosts[1]).touch()

    def beat_elsewhere() -> bool:
        for rank in (0, 2):
            job.files.heartbeat(job.plan.hosts[rank]).touch()
        return not job.engines()

    wait_until(beat_elsewhere, "the end of the hanging job", 3 + CLEAN_WITHIN)
    assert time.monotonic() - begun > 2
    job.wait_until_clean()
    assert job.first_failure() == (1, f"{name(job, 1)}: no iteration for 3 s")
    for rank in range(3):
        assert job.log(rank).count("flagscale: stacks of the rank with pid") == 2


def test_only_connections_with_the_secret_are_accepted(
    farm: NamespaceFarm, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "5ec4e7" * 10
    monkeypatch.setattr(launcher, "token_hex", lambda length: secret)
    job = make_job(farm, "rank").start()
    channel = job.plan.channel
    assert channel is not None
    known = dial(channel.address, channel.port, secret.encode(), 2)
    assert known is not None, "the right secret is accepted"
    known.close()
    for wrong in (b"", b"wrong", secret[:-1].encode()):
        assert dial(channel.address, channel.port, wrong, 2) is None
    # It listens only on that address.
    assert not _listens(farm, 0, "127.0.0.1", channel.port)
    assert _listens(farm, 0, channel.address, channel.port)

    for host in farm.hosts:
        for process in left(farm, host):
            assert secret not in command_line(process)
            assert CHANNEL_SECRET not in process.environ()
    files = [path for path in job.files.path.rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if secret in path.read_text(errors="replace")]
    time.sleep(1)
    assert job.phases() == ["running"] * 3


@pytest.mark.slow  # the test above shows that a wrong secret is not accepted
def test_a_host_with_another_secret_does_not_join(
    farm: NamespaceFarm, make_job: MakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(farm, "rank", start_timeout=8.0, before_start=_OTHER_SECRET)
    with pytest.raises(HostError, match=f"(?m): not heard from within 8 s: {name(job, 1)}$"):
        job.start()
    assert not any(job.left(host) for host in farm.hosts)


_OTHER_SECRET = """
if [ "$FLAGSCALE_HOST_RANK" = 1 ]; then
    sed -i 's/"FLAGSCALE_CHANNEL_SECRET": "[^"]*"/"FLAGSCALE_CHANNEL_SECRET": "guessed"/' \
        logs/pids/host_1_*.secrets.json
fi
"""


def _listens(farm: NamespaceFarm, rank: int, address: str, port: int) -> bool:
    """Return whether an address of a host has a listener, seen from that host."""
    script = f"exec 3<>/dev/tcp/{address}/{port}"
    return farm.run(farm.hosts[rank], ["bash", "-c", script]).returncode == 0
