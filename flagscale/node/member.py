"""Every other host's end of the channel."""

from __future__ import annotations

import time
from collections.abc import Callable

from flagscale.node.channel import GONE, Link, LinkLost, Message, dial
from flagscale.node.rendezvous import COMING_BACK, AttemptStart, ChannelEnd, Verdict, send_quietly, until

_DIAL_TIMEOUT = 2.0
_MARGIN = 8.0
"""Seconds that a member waits longer than the coordinator, because it waits for the coordinator's verdict."""


class Member(ChannelEnd):
    """Connects to the coordinator, and reconnects whenever the connection is lost."""

    def __init__(self, address: str, port: int, secret: bytes, rank: int, coordinator_name: str) -> None:
        super().__init__()
        self._address, self._port, self._secret = address, port, secret
        self._rank, self._coordinator_name = rank, coordinator_name
        self._link: Link | None = None
        self._ready = -1
        self._begun: AttemptStart | None = None
        self._coordinator_finished = False
        self._closed_at: float | None = None
        self._thread.start()

    def rendezvous(self, attempt: int, seconds: float, stopped: Callable[[], bool]) -> AttemptStart | Verdict:
        with self._lock:
            self._begin(attempt)
            self._ready, self._begun = attempt, None
            self._outbox.append({"ready": attempt})
            self._ring()
        deadline = time.monotonic() + seconds + _MARGIN
        while True:
            if stopped():
                return Verdict(attempt, "stopped", self._rank, "stopped")
            with self._lock:
                if self._verdict:
                    return self._verdict
                if self._begun:
                    return self._begun if self._rank in self._begun.hosts else self._left_out(attempt)
                if self._coordinator_finished:
                    return Verdict(
                        attempt, "failed", self._rank, f"the job has ended on {self._coordinator_name}"
                    )
                if self._closed_at and time.monotonic() - self._closed_at > COMING_BACK:
                    return Verdict(attempt, "failed", 0, f"{self._coordinator_name}: {GONE}")
            if not until(deadline):
                return Verdict(attempt, "failed", self._rank, self._why_not(seconds))

    def report(self, verdict: Verdict) -> None:
        with self._lock:
            self._take(verdict)
            self._outbox.append(verdict.to_message())
            self._ring()

    def confirm_end(self, deadline: float) -> tuple[int, ...]:
        with self._lock:
            if self._link:
                self._link.hold_until_exit()
                self._outbox.append({"confirmed": self._attempt})
                self._ring()
        return ()

    def _left_out(self, attempt: int) -> Verdict:
        return Verdict(attempt, "failed", self._rank, "this host was too late: the job continues without it")

    def _why_not(self, seconds: float) -> str:
        place = f"{self._coordinator_name} at {self._address} port {self._port}"
        if self._link:
            return f"{place} did not start the job within {seconds:g} s"
        hint = "set experiment.runner.master_addr to its address if this one is wrong"
        return f"{place} could not be reached within {seconds:g} s; {hint}"

    def _open_links(self) -> list[Link]:
        return [self._link] if self._link else []

    def _step(self) -> None:
        if self._link is None:
            self._dial()
            return
        try:
            for message in self._link.receive():
                self._heard(message)
        except LinkLost as lost:
            self._link.close()
            self._link = None
            self._closed_at = time.monotonic() if lost.is_closed else None
            if self._begun and not self._coordinator_finished:
                self._take(Verdict(self._attempt, "failed", 0, f"{self._coordinator_name}: {lost}"))

    def _dial(self) -> None:
        if self._coordinator_finished or self._ready < 0:
            return
        # Other threads may ask for the verdict meanwhile.
        self._lock.release()
        try:
            link = dial(self._address, self._port, self._secret, _DIAL_TIMEOUT)
        finally:
            self._lock.acquire()
        if link:
            self._link = link
            self._closed_at = None
            send_quietly(link, {"host": self._rank})
            # Earlier unsent messages belong to a connection that no longer exists.
            self._outbox = [{"ready": self._ready}]

    def _heard(self, message: Message) -> None:
        if message.get("begin") == self._attempt:
            self._begun = AttemptStart(self._attempt, tuple(message["hosts"]))
        elif "verdict" in message:
            verdict = Verdict(**message["verdict"])
            if verdict.kind == "finished":
                self._coordinator_finished = True
            else:
                self._take(verdict)

    def _flush(self) -> None:
        if self._link:
            for message in self._outbox:
                send_quietly(self._link, message)
            self._outbox.clear()

    def _leave(self) -> None:
        if self._link:
            self._link.close()
