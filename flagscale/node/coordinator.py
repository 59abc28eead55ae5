"""The first host's end of the channel: gathers the other hosts for each attempt, passes on every verdict."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import Empty, SimpleQueue

from flagscale.files import room_for_files
from flagscale.node.channel import GONE, Link, LinkLost, Message, accept
from flagscale.node.network import listen
from flagscale.node.rendezvous import COMING_BACK, AttemptStart, ChannelEnd, Verdict, send_quietly, until

_BREATH = 0.5


class Coordinator(ChannelEnd):
    """Listens on one address for the supervisors of the other hosts, which must know the secret.

    Args:
        names: the names of all hosts by rank; the lowest rank is this host's.
        fewer: the smaller numbers of hosts that a restart may use, largest first.

    Raises:
        OSError: the port is in use, or the address does not belong to this host.
    """

    def __init__(
        self, address: str, port: int, secret: bytes, names: Mapping[int, str], fewer: tuple[int, ...]
    ) -> None:
        super().__init__()
        self._secret, self._names, self._fewer = secret, names, fewer
        self._rank = min(names)
        self._links: dict[int, Link] = {}
        self._ready: dict[int, int] = {}
        self._taking_part: set[int] = set()
        self._closed: dict[int, float] = {}
        self._confirmed: set[int] = set()
        self._ended: set[int] = set()
        """The hosts that have confirmed their end and whose connection the kernel has closed since."""
        self._last_sent: Message | None = None
        self._strangers: SimpleQueue[Link] = SimpleQueue()
        self._unnamed: list[Link] = []
        room_for_files(len(names))
        self._listener = listen(address, port)
        threading.Thread(target=self._accept, daemon=True).start()
        self._thread.start()

    def rendezvous(self, attempt: int, seconds: float, stopped: Callable[[], bool]) -> AttemptStart | Verdict:
        with self._lock:
            # The loss of hosts that ended the last attempt may be noticed only now.
            self._taking_part.clear()
            if self._begin(attempt):
                self._last_sent = None
        deadline = time.monotonic() + seconds
        is_late = False
        while True:
            if stopped():
                return Verdict(attempt, "stopped", self._rank, "stopped")
            with self._lock:
                if self._verdict:
                    return self._verdict
                hosts = sorted(
                    {self._rank, *(host for host, ready in self._ready.items() if ready == attempt)}
                )
                if len(hosts) == len(self._names):
                    return self._begun(attempt, hosts)
                if is_late or len(hosts) + len(self._gone()) == len(self._names):
                    return self._with_fewer(attempt, hosts, seconds)
            is_late = not until(deadline)

    def report(self, verdict: Verdict) -> None:
        with self._lock:
            self._report(verdict)

    def _report(self, verdict: Verdict) -> None:
        self._take(verdict)
        self._announce(verdict.to_message())

    def confirm_end(self, deadline: float) -> tuple[int, ...]:
        with self._changed:
            # Only a host that is linked may still confirm: one that is silent loses its link.
            self._changed.wait_for(lambda: not self._links, deadline - time.monotonic())
            return tuple(sorted(self._ended))

    def _with_fewer(self, attempt: int, hosts: list[int], seconds: float) -> AttemptStart | Verdict:
        """Start with the hosts that are ready, if they are enough; the first attempt needs all hosts."""
        count = next((fewer for fewer in self._fewer if fewer <= len(hosts)), 0) if attempt else 0
        if count:
            return self._begun(attempt, hosts[:count])
        gone = self._gone()
        late = [name for host, name in self._names.items() if host not in hosts and host not in gone]
        # Imported here, because a start that succeeds does not need it.
        from flagscale.config.host_names import compress

        reported = [f"not heard from within {seconds:g} s: {compress(late)}"] if late else []
        reported += [f"{self._names[host]}: {GONE}" for host in sorted(gone)]
        verdict = Verdict(attempt, "failed", self._rank, "; ".join(reported))
        self._report(verdict)
        return verdict

    def _gone(self) -> set[int]:
        """Return the hosts that need not be waited for, because their supervisors have ended."""
        now = time.monotonic()
        return {host for host, since in self._closed.items() if now - since > COMING_BACK}

    def _begun(self, attempt: int, hosts: list[int]) -> AttemptStart:
        self._taking_part = {*hosts} - {self._rank}
        self._announce({"begin": attempt, "hosts": hosts})
        return AttemptStart(attempt, tuple(hosts))

    def _announce(self, message: Message) -> None:
        """Send a message to all members, including those that connect later."""
        self._last_sent = message
        self._outbox.append(message)
        self._ring()

    def _open_links(self) -> list[Link]:
        return [*self._links.values(), *self._unnamed]

    def _step(self) -> None:
        self._welcome()
        for host, link in list(self._links.items()):
            try:
                for message in link.receive():
                    self._heard(host, message)
            except LinkLost as lost:
                self._lost(host, str(lost))
                if lost.is_closed:
                    self._closed[host] = time.monotonic()
                    if host in self._confirmed:
                        self._ended.add(host)
        if not self._links:
            self._changed.notify_all()

    def _lost(self, host: int, why: str) -> None:
        self._links.pop(host).close()
        self._ready.pop(host, None)
        if host in self._taking_part:
            self._pass_on(Verdict(self._attempt, "failed", host, f"{self._names[host]}: {why}"))

    def _welcome(self) -> None:
        """Register the links that have named their hosts."""
        while True:
            try:
                self._unnamed.append(self._strangers.get_nowait())
            except Empty:
                break
        for link in list(self._unnamed):
            try:
                messages = link.receive()
            except LinkLost:
                self._unnamed.remove(link)
                link.close()
                continue
            if messages:
                self._unnamed.remove(link)
                host = int(messages[0]["host"])
                if host in self._links:
                    self._lost(host, "its supervisor lost the connection")
                self._links[host] = link
                self._closed.pop(host, None)
                self._confirmed.discard(host)
                self._ended.discard(host)
                for message in messages[1:]:
                    self._heard(host, message)

    def _heard(self, host: int, message: Message) -> None:
        if "ready" in message:
            self._ready[host] = message["ready"]
            if message["ready"] == self._attempt and self._last_sent:
                send_quietly(self._links[host], self._last_sent)
        elif "verdict" in message:
            verdict = Verdict(**message["verdict"])
            if verdict.kind == "finished":
                self._taking_part.discard(host)
            else:
                self._pass_on(verdict)
        elif message.get("confirmed") == self._attempt:
            self._confirmed.add(host)

    def _pass_on(self, verdict: Verdict) -> None:
        if self._take(verdict):
            self._announce(verdict.to_message())

    def _flush(self) -> None:
        for message in self._outbox:
            for link in self._links.values():
                send_quietly(link, message)
        self._outbox.clear()

    def _leave(self) -> None:
        with suppress(OSError):
            # Closing alone ends neither a pending `accept` nor the listening.
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for link in (*self._links.values(), *self._unnamed):
            link.close()

    def _accept(self) -> None:
        while True:
            try:
                channel, _ = self._listener.accept()
            except OSError:
                if self._closing.is_set():
                    return  # closed: this host is leaving
                time.sleep(_BREATH)  # out of files or memory at the moment; the other side will try again
                continue
            threading.Thread(target=self._prove, args=(channel,), daemon=True).start()

    def _prove(self, channel: socket.socket) -> None:
        if link := accept(channel, self._secret):
            self._strangers.put(link)
            self._ring()
