"""The channel between the supervisors, over real loopback sockets and without engines."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from flagscale.node import channel as link
from flagscale.node import coordinator as coordinator
from flagscale.node import member
from flagscale.node import rendezvous as peers
from flagscale.node.channel import dial
from flagscale.node.coordinator import Coordinator
from flagscale.node.member import Member
from flagscale.node.network import is_free, listen
from flagscale.node.rendezvous import AttemptStart, ChannelEnd, Verdict
from flagscale_testing.ports import free_port
from tests.node.conftest import wait_for

HERE = "127.0.0.1"
SECRET = b"of this run"
SILENCE = 1.5
TOLD = SILENCE + 5
"""Seconds within which every supervisor knows the verdict."""


class Star:
    """The supervisors' ends of one run, by rank; each behaves as if it were alone on its host."""

    def __init__(self, hosts: int, fewer: tuple[int, ...] = ()) -> None:
        self.port = free_port()
        names = {rank: f"node{rank}" for rank in range(hosts)}
        self.ends: dict[int, ChannelEnd] = {0: Coordinator(HERE, self.port, SECRET, names, fewer)}
        for rank in range(1, hosts):
            self.join(rank)
        self._held = ExitStack()

    def join(self, rank: int, secret: bytes = SECRET) -> None:
        self.ends[rank] = Member(HERE, self.port, secret, rank, "node0")

    def rendezvous(self, attempt: int, *ranks: int, seconds: float = 10) -> dict[int, AttemptStart | Verdict]:
        """Have these ranks (default: all) wait for each other."""
        taking_part = ranks or tuple(self.ends)
        with ThreadPoolExecutor() as pool:
            waits = {
                rank: pool.submit(self.ends[rank].rendezvous, attempt, seconds, lambda: False)  # type: ignore[attr-defined]
                for rank in taking_part
            }
            return {rank: wait.result() for rank, wait in waits.items()}

    def begin(self, attempt: int, *ranks: int) -> None:
        everybody = ranks or tuple(self.ends)
        begin = AttemptStart(attempt, tuple(sorted(everybody)))
        assert self.rendezvous(attempt, *everybody) == dict.fromkeys(everybody, begin)

    def report(
        self, rank: int, attempt: int, kind: Literal["failed", "hung", "stopped", "finished"]
    ) -> Verdict:
        verdict = Verdict(attempt, kind, rank, f"node{rank}: {kind}")
        self.ends[rank].report(verdict)  # type: ignore[attr-defined]
        return verdict

    def words(self, *ranks: int) -> list[Verdict]:
        """Wait until each of these ranks has a verdict."""
        return [wait_for(self.ends[rank].verdict, TOLD) for rank in ranks]  # type: ignore[misc]

    def lose(self, rank: int, how: str) -> None:
        """Lose a rank: its process ends (`closed`), its host goes silent or its connection is cut."""
        end = self.ends[rank]
        if how == "closed":
            self.ends.pop(rank).close()
        elif how == "silent":
            self._held.enter_context(end._lock)
        else:
            known: Any = end
            channel = socket.socket(fileno=os.dup(known._link._connection.fileno()))
            with channel:
                channel.shutdown(socket.SHUT_RDWR)

    def find_again(self) -> None:
        self._held.close()

    def close(self) -> None:
        self.find_again()
        for end in self.ends.values():
            end.close()


@pytest.fixture
def star(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Star]]:
    monkeypatch.setattr(link, "SILENCE", SILENCE)
    monkeypatch.setattr(link, "_ALIVE_EVERY", 0.2)
    monkeypatch.setattr(peers, "_PUMP", 0.05)
    made: list[Star] = []

    def make(*args: Any) -> Star:
        made.append(Star(*args))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_all_ranks_begin_together_and_no_port_stays_open(star: Callable[..., Star]) -> None:
    stars = star(4)
    stars.begin(0)
    assert [end.verdict() for end in stars.ends.values()] == [None] * 4
    stars.close()
    assert is_free(HERE, stars.port)


def test_members_may_arrive_before_the_coordinator(star: Callable[..., Star]) -> None:
    stars = star(1)
    stars.ends.pop(0).close()
    for rank in (1, 2):
        stars.join(rank)
    with ThreadPoolExecutor() as pool:
        early = pool.submit(stars.rendezvous, 0, 1, 2)
        time.sleep(0.15)
        stars.ends[0] = Coordinator(HERE, stars.port, SECRET, {0: "node0", 1: "node1", 2: "node2"}, ())
        assert stars.rendezvous(0, 0) == {0: AttemptStart(0, (0, 1, 2))}
        assert set(early.result().values()) == {AttemptStart(0, (0, 1, 2))}


def test_a_member_with_another_secret_never_joins(star: Callable[..., Star]) -> None:
    stars = star(3)
    stars.ends.pop(2).close()
    stars.join(2, b"of another run")
    stars.join(3, b"")
    over = threading.Event()
    with ThreadPoolExecutor() as pool:
        outsiders = [
            pool.submit(stars.ends[rank].rendezvous, 0, 60, over.is_set)  # type: ignore[attr-defined]
            for rank in (2, 3)
        ]
        found = stars.rendezvous(0, 0, 1, seconds=2)
        assert not [outsider for outsider in outsiders if outsider.done()]
        over.set()
    # Both ends that know the secret report the same.
    assert set(found.values()) == {Verdict(0, "failed", 0, "not heard from within 2 s: node2")}
    assert dial(HERE, stars.port, b"of another run", 1.0) is None


def test_a_listener_without_the_secret_is_not_trusted(star: Callable[..., Star]) -> None:
    """A process that has taken the coordinator's port cannot give orders to the members."""
    stars = star(1)
    stars.ends.pop(0).close()
    stars.join(1)
    with listen(HERE, stars.port) as impostor, ThreadPoolExecutor() as pool:
        waiting = pool.submit(stars.rendezvous, 0, 1, seconds=1 - member._MARGIN)
        channel, _ = impostor.accept()
        with channel:
            theirs = channel.recv(36, socket.MSG_WAITALL)
            channel.sendall(theirs)  # its own challenge as ours, so that its proof might do for both
            proof = channel.recv(36, socket.MSG_WAITALL)
            begin = b'{"begin": 0, "hosts": [0, 1]}'
            channel.sendall(proof + struct.pack("!i", len(begin)) + begin)
            (verdict,) = waiting.result().values()
    assert isinstance(verdict, Verdict)
    assert "node0 at 127.0.0.1 port" in verdict.text
    assert "could not be reached" in verdict.text


def test_a_process_that_was_paused_does_not_blame_its_peer_for_the_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After a pause of a virtual machine or process, the other side may still be alive."""
    now = time.monotonic()
    monkeypatch.setattr(link, "time", SimpleNamespace(monotonic=lambda: now))
    ours, theirs = (link.Link(end) for end in socket.socketpair())
    now += 60
    assert ours.receive() == []
    # One second of the pause counts, and all the time spent waiting for a message.
    for _ in range(int((link.SILENCE - 1) / 0.5)):
        now += 0.5
        assert ours.receive() == []
    now += 0.5
    with pytest.raises(link.LinkLost, match="nothing was heard from it for"):
        ours.receive()
    for end in (ours, theirs):
        end.close()


@pytest.mark.parametrize("rest", [b"\0\0", b"\0\0\0\x20{"])
def test_a_message_that_stops_halfway_does_not_mean_that_the_other_process_has_ended(rest: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 100_000))
        theirs.sendall(rest)
        held = link.Link(ours)
        with pytest.raises(link.LinkLost) as lost:
            held.receive()
        assert not lost.value.is_closed
        held.close()


def test_connections_from_strangers_are_ignored(star: Callable[..., Star]) -> None:
    stars = star(3)
    openings = [b"", b"GET / HTTP/1.1\r\n\r\n", b"\0\0", b"\xff" * 64, b"\0\0\0\x20" + b"x" * 32, b"\x7f" * 4]
    with ExitStack() as strangers:
        for opening in openings * 2:
            channel = strangers.enter_context(socket.create_connection((HERE, stars.port)))
            channel.sendall(opening)
        began = time.monotonic()
        stars.begin(0)
        assert time.monotonic() - began < TOLD
        time.sleep(SILENCE + 0.5)
        assert [end.verdict() for end in stars.ends.values()] == [None] * 3
        # They are not waited for forever.
        stranger = strangers.enter_context(socket.create_connection((HERE, stars.port)))
        stranger.settimeout(TOLD)
        while stranger.recv(1000):
            pass
    assert stars.report(1, 0, "stopped") == stars.words(2)[0]


@pytest.mark.parametrize("how", ["closed", "silent", "cut"])
def test_the_loss_of_a_member_is_reported_to_all(star: Callable[..., Star], how: str) -> None:
    stars = star(4)
    stars.begin(0)
    began = time.monotonic()
    stars.lose(2, how)
    reported = stars.words(0, 1, 3)
    assert time.monotonic() - began < TOLD
    assert len(set(reported)) == 1
    assert (reported[0].attempt, reported[0].kind, reported[0].host) == (0, "failed", 2)
    silent = f"nothing was heard from it for {SILENCE:g} s"
    assert reported[0].text == f"node2: {silent if how == 'silent' else link.GONE}"
    if how == "cut":
        assert stars.words(2)[0].text == "node0: the connection to its supervisor was lost"


@pytest.mark.parametrize("how", ["closed", "silent"])
def test_the_loss_of_the_coordinator_is_reported_to_all(star: Callable[..., Star], how: str) -> None:
    stars = star(3)
    stars.begin(0)
    began = time.monotonic()
    stars.lose(0, how)
    reported = stars.words(1, 2)
    assert time.monotonic() - began < TOLD
    assert {(verdict.attempt, verdict.kind, verdict.host) for verdict in reported} == {(0, "failed", 0)}
    assert all(verdict.text.startswith("node0: ") for verdict in reported)


def test_a_member_that_reconnects_before_its_loss_is_noticed_ends_the_attempt(
    star: Callable[..., Star],
) -> None:
    """It has already ended its part, so the others must end theirs."""
    stars = star(3)
    stars.begin(0)
    first = stars.ends[2]
    stars.join(2)
    stars.ends[2]._ready = 0  # type: ignore[attr-defined]
    assert {verdict.host for verdict in stars.words(0, 1)} == {2}
    first.close()


@pytest.mark.parametrize("kind", ["failed", "hung", "stopped"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_verdict_reaches_all_ranks(
    star: Callable[..., Star], rank: int, kind: Literal["failed", "hung", "stopped"]
) -> None:
    stars = star(3)
    stars.begin(0)
    verdict = stars.report(rank, 0, kind)
    assert stars.words(0, 1, 2) == [verdict] * 3
    # The first verdict counts.
    stars.report(2, 0, "failed")
    time.sleep(0.15)
    assert stars.words(0, 1, 2) == [verdict] * 3


@pytest.mark.parametrize("rank", [0, 1])
def test_a_verdict_with_a_very_long_text_reaches_all_ranks(star: Callable[..., Star], rank: int) -> None:
    """Such as `Error(s) in loading state_dict`, which names every tensor."""
    stars = star(3)
    stars.begin(0)
    text = f"node{rank}: rank 0: missing keys: " + "é" * 100_000
    stars.ends[rank].report(Verdict(0, "failed", rank, text, is_final=True))  # type: ignore[attr-defined]
    for verdict in stars.words(0, 1, 2):
        assert (verdict.host, verdict.is_final) == (rank, True)
        assert verdict.text.startswith(text[:1000])


def test_the_end_of_a_finished_host_is_not_a_failure(star: Callable[..., Star]) -> None:
    stars = star(4)
    stars.begin(0)
    for rank in (1, 2):
        stars.report(rank, 0, "finished")
        stars.lose(rank, "closed")
    time.sleep(0.3)
    assert [stars.ends[rank].verdict() for rank in (0, 3)] == [None, None]
    # Hosts that have not finished are still watched.
    stars.lose(3, "closed")
    assert stars.words(0)[0].host == 3


def test_the_coordinator_may_finish_first(star: Callable[..., Star]) -> None:
    stars = star(3)
    stars.begin(0)
    stars.report(0, 0, "finished")
    stars.lose(0, "closed")
    time.sleep(0.3)
    assert [stars.ends[rank].verdict() for rank in (1, 2)] == [None, None]
    # Without it there cannot be another attempt.
    (verdict,) = stars.rendezvous(1, 1).values()
    assert isinstance(verdict, Verdict)
    assert verdict.text == "the job has ended on node0"


def test_the_next_attempt_begins_with_all_hosts(star: Callable[..., Star]) -> None:
    stars = star(3)
    stars.begin(0)
    stars.lose(1, "cut")
    stars.words(0, 1, 2)
    stars.begin(1)
    assert [end.verdict() for end in stars.ends.values()] == [None] * 3
    # A verdict on an attempt that is over no longer counts.
    stars.report(2, 0, "failed")
    time.sleep(0.15)
    assert [end.verdict() for end in stars.ends.values()] == [None] * 3
    stars.lose(2, "closed")
    stars.words(0, 1)
    stars.join(2)
    stars.begin(2)


def test_a_host_that_was_cut_off_joins_the_next_attempt(star: Callable[..., Star]) -> None:
    stars = star(3)
    stars.begin(0)
    stars.lose(2, "silent")
    stars.words(0, 1)
    stars.find_again()
    assert stars.words(2)[0].host == 0
    stars.begin(1)


def test_a_loss_that_is_noticed_late_does_not_end_the_next_attempt(star: Callable[..., Star]) -> None:
    """A rank's error is reported at once, but the silence of the host that caused it only seconds later."""
    stars = star(3, (2,))
    stars.begin(0)
    stars.lose(2, "silent")
    stars.report(1, 0, "failed")
    stars.words(0, 1)
    assert stars.rendezvous(1, 0, 1, seconds=SILENCE + 1) == {
        0: AttemptStart(1, (0, 1)),
        1: AttemptStart(1, (0, 1)),
    }
    assert [stars.ends[rank].verdict() for rank in (0, 1)] == [None, None]


def test_an_attempt_begins_with_fewer_hosts_if_some_are_missing(star: Callable[..., Star]) -> None:
    stars = star(4, (2, 1))
    # The first attempt needs all hosts.
    stars.ends.pop(3).close()
    missing = Verdict(0, "failed", 0, "not heard from within 2 s: node3")
    assert set(stars.rendezvous(0, seconds=2).values()) == {missing}
    stars.join(3)
    stars.begin(1)
    stars.lose(3, "closed")
    stars.words(0, 1, 2)
    # Three hosts do not fit, so one of those present is left out as well, and this is reported to it.
    found = stars.rendezvous(2, seconds=2)
    assert found[0] == found[1] == AttemptStart(2, (0, 1))
    assert found[2] == Verdict(2, "failed", 2, "this host was too late: the job continues without it")
    # Neither it nor a host that comes later disturbs the others.
    stars.lose(2, "closed")
    stars.join(3)
    (late,) = stars.rendezvous(2, 3).values()
    assert late == Verdict(2, "failed", 3, "this host was too late: the job continues without it")
    assert [stars.ends[rank].verdict() for rank in (0, 1)] == [None, None]


def test_too_few_hosts_end_the_job_and_name_the_missing_ones(star: Callable[..., Star]) -> None:
    stars = star(4, (3,))
    stars.begin(0)
    for rank in (2, 3):
        stars.lose(rank, "closed")
    stars.words(0, 1)
    missing = Verdict(1, "failed", 0, "not heard from within 2 s: node[2-3]")
    assert set(stars.rendezvous(1, 0, 1, seconds=2).values()) == {missing}
    # A host that comes later does not have to wait.
    stars.join(2)
    assert stars.rendezvous(1, 2) == {2: missing}


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (coordinator, member):
        monkeypatch.setattr(module, "COMING_BACK", 0.5)


@pytest.mark.usefixtures("soon")
def test_members_that_are_gone_are_not_waited_for(star: Callable[..., Star]) -> None:
    stars = star(4, (2,))
    stars.begin(0)
    stars.lose(3, "closed")
    stars.words(0, 1, 2)
    begun = time.monotonic()
    left_out = Verdict(1, "failed", 2, "this host was too late: the job continues without it")
    assert stars.rendezvous(1, seconds=60) == {**dict.fromkeys((0, 1), AttemptStart(1, (0, 1))), 2: left_out}
    # The same holds in every later attempt.
    stars.lose(2, "closed")
    stars.report(1, 1, "failed")
    stars.words(0, 1)
    assert stars.rendezvous(2, seconds=60) == dict.fromkeys((0, 1), AttemptStart(2, (0, 1)))
    stars.lose(1, "closed")
    stars.words(0)
    gone = "; ".join(f"node{rank}: the connection to its supervisor was lost" for rank in (1, 2, 3))
    assert stars.rendezvous(3, seconds=60) == {0: Verdict(3, "failed", 0, gone)}
    assert time.monotonic() - begun < 20


@pytest.mark.usefixtures("soon")
def test_a_member_that_comes_back_is_waited_for(star: Callable[..., Star]) -> None:
    stars = star(3, (2,))
    stars.begin(0)
    stars.lose(2, "cut")
    stars.words(0, 1, 2)
    time.sleep(1)
    stars.begin(1)


@pytest.mark.usefixtures("soon")
def test_a_coordinator_that_is_gone_is_not_waited_for(star: Callable[..., Star]) -> None:
    stars = star(3)
    stars.begin(0)
    stars.lose(0, "closed")
    stars.words(1, 2)
    begun = time.monotonic()
    gone = Verdict(1, "failed", 0, "node0: the connection to its supervisor was lost")
    assert stars.rendezvous(1, seconds=60) == {1: gone, 2: gone}
    assert time.monotonic() - begun < 10


def test_a_stop_ends_the_rendezvous(star: Callable[..., Star]) -> None:
    stars = star(3)
    for rank in (0, 1):
        began = time.monotonic()
        verdict = stars.ends[rank].rendezvous(0, 60, lambda: True)  # type: ignore[attr-defined]
        assert (verdict.kind, verdict.host) == ("stopped", rank)
        assert time.monotonic() - began < 1


def confirm(stars: Star, *ranks: int, seconds: float = 10) -> tuple[int, ...]:
    """Have these members confirm a stop, then the coordinator; return what the coordinator has heard."""
    for rank in ranks:
        assert stars.ends[rank].confirm_end(0.0) == ()  # type: ignore[attr-defined]
    ended: tuple[int, ...] = stars.ends[0].confirm_end(time.monotonic() + seconds)  # type: ignore[attr-defined]
    return ended


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Return a function that does what the end of a process would do: closes the connections that it held."""
    held: list[int] = []
    monkeypatch.setattr(link.Link, "hold_until_exit", lambda self: held.append(os.dup(self.fileno())))

    def exit_now() -> None:
        while held:
            os.close(held.pop())

    yield exit_now
    exit_now()


def test_members_confirm_a_stop_by_a_message_and_their_exit(
    star: Callable[..., Star], exits: Callable[[], None]
) -> None:
    stars = star(4)
    stars.begin(0)
    stars.report(0, 0, "stopped")
    stars.words(1, 2, 3)
    stars.lose(3, "closed")  # ends without a word
    with ThreadPoolExecutor() as pool:
        ended = pool.submit(confirm, stars, 1, 2)
        for rank in (1, 2):
            stars.ends.pop(rank).close()
        time.sleep(0.3)
        assert not ended.done(), "their processes are still alive"
        exits()
        assert ended.result() == (1, 2)


@pytest.mark.usefixtures("exits")
def test_a_member_that_confirms_a_stop_but_does_not_exit_is_not_counted(star: Callable[..., Star]) -> None:
    stars = star(3)
    stars.begin(0)
    stars.report(0, 0, "stopped")
    stars.words(1, 2)
    begun = time.monotonic()
    assert confirm(stars, 1, seconds=0.5) == ()
    assert time.monotonic() - begun < TOLD
    # Its host falls silent meanwhile: this is not taken for its end either.
    for rank in (1, 2):
        stars.lose(rank, "silent")
    assert confirm(stars, seconds=TOLD) == ()


@pytest.mark.usefixtures("exits")
def test_a_member_that_reconnects_after_it_has_confirmed_is_not_counted(star: Callable[..., Star]) -> None:
    stars = star(2)
    stars.begin(0)
    stars.report(0, 0, "stopped")
    stars.words(1)
    stars.ends[1].confirm_end(0.0)  # type: ignore[attr-defined]
    wait_for(lambda: 1 in stars.ends[0]._confirmed)  # type: ignore[attr-defined]
    stars.lose(1, "cut")
    wait_for(lambda: 1 in stars.ends[0]._links and not stars.ends[0]._confirmed)  # type: ignore[attr-defined]
    assert confirm(stars, seconds=0.5) == ()


def test_the_end_of_a_process_closes_the_connection_that_it_held() -> None:
    """And nothing else does, such as the end of the object or of its thread."""
    program = (
        "import sys, time; from multiprocessing.connection import Connection\n"
        "from flagscale.node.channel import Link\n"
        "held = Link(Connection(int(sys.argv[1]))); held.hold_until_exit(); held.close(); del held\n"
        "print(flush=True); time.sleep(100)"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        words = [sys.executable, "-c", program, str(ours.fileno())]
        with subprocess.Popen(words, pass_fds=[ours.fileno()], stdout=subprocess.PIPE) as child:
            assert child.stdout
            child.stdout.readline()
            ours.close()
            theirs.settimeout(0.2)
            with pytest.raises(TimeoutError):
                theirs.recv(1)
            child.kill()
            theirs.settimeout(10)
            assert theirs.recv(1) == b""
