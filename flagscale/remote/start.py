"""Start the hosts of a plan: reach all of them first, then start all together, or stop them all again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Condition, Event

from flagscale.errors import FlagScaleError
from flagscale.node.files import packed
from flagscale.remote.hosts import (
    STOPPED,
    ask_all,
    in_background,
    reach_for_start,
    run_command,
    sees_our_files,
    stop_each,
)
from flagscale.remote.report import host_error
from flagscale.remote.transport import Transport, transport_of_start
from flagscale.run.rundir import RunDir
from flagscale.run.state import Reply
from flagscale.values import Host, LaunchPlan

OnProgress = Callable[[int, int], None]
"""Called with the number of hosts that have started, and the number of all hosts."""
FileToSend = tuple[str, str, str]
"""A file to send: its path below the run directory, its mode (octal), its text as `packed`."""
_HEARING = 5.0
"""Seconds to stop the first host, and for the others to hear of it and answer."""


def unseen_files(
    plan: LaunchPlan, texts: Mapping[Path, str], secrets: Mapping[str, str]
) -> dict[Host, list[FileToSend]]:
    """Return the files to send to each host that has a run directory of its own."""
    hosts = [host for host in plan.hosts if not sees_our_files(plan, host)]
    if not hosts:
        return {}
    run_dir = RunDir(Path(plan.exp_dir))
    recorded, hidden = packed(plan.to_json()), packed(json.dumps(dict(secrets)))
    found: dict[Host, list[FileToSend]] = {}
    for host in hosts:
        mine = (run_dir.run_script(host), run_dir.stop_script(host))
        files = [(path, "755", packed(texts[path])) for path in mine]
        files.append((run_dir.plan, "644", recorded))
        if secrets:  # after the plan, without which `stop` would not find them
            files.append((run_dir.secrets(host), "600", hidden))
        found[host] = [(str(path.relative_to(run_dir.path)), mode, content) for path, mode, content in files]
    return found


def start_hosts(
    plan: LaunchPlan, unseen: Mapping[Host, Sequence[FileToSend]], done: OnProgress | None
) -> None:
    """Start a recorded plan on every host; all hosts run it, or none does.

    Args:
        unseen: as `unseen_files` returns them.

    Raises:
        FlagScaleError, HostError: as `launcher.start`.
    """
    try:
        starting = _start_together(plan, unseen, done)
    finally:
        transport_of_start.cache_clear()
    if not starting.is_taken_back:
        return
    stopped, replies = starting.stopped(), starting.replies
    failed = {host: reply["message"] for host, reply in replies.items() if _has_failed(reply)}
    for host, reply in stopped.items():
        if not reply["ok"] and not replies[host].get("unreachable"):
            stuck = f"could not be stopped again: {reply['message']}"
            failed[host] = f"{failed[host]}\n{stuck}" if host in failed else stuck
    if not failed:
        raise FlagScaleError("the job did not start: it was stopped by another command meanwhile")
    summary = "the job did not start; hosts that had started were stopped again:"
    raise host_error(summary, [(host, failed[host]) for host in plan.hosts if host in failed])


def _start_together(
    plan: LaunchPlan, unseen: Mapping[Host, Sequence[FileToSend]], done: OnProgress | None
) -> Starting:
    """Ask all hosts to start, and return their answers."""
    reach = partial(reach_for_start, plan)
    _reach_hosts(plan, unseen, reach)
    starting = Starting(plan)

    def note(host: Host, reply: Reply) -> None:
        starting.note(host, reply)
        if done and not starting.is_taken_back:
            done(len(starting.replies), len(plan.nodes))

    try:
        starts = {host: [run_command(plan, host, "start")] for host in plan.hosts}
        ask_all(plan, starts.__getitem__, plan.start_timeout, note, reach=reach, together=True)
    except BaseException:  # also Ctrl-C: the whole job runs, or no part of it
        stop_each(plan)
        raise
    return starting


class Starting:
    """A start, as its hosts answer; the first failure stops them all again, while the others still answer.

    They are waiting for the host that failed. If the first host is stopped, its supervisor passes that on;
    the supervisors of the others answer that they have stopped, and exit. Most need no session for a stop.
    """

    def __init__(self, plan: LaunchPlan) -> None:
        self.replies: dict[Host, Reply] = {}
        self._plan = plan
        self._changed = Condition()
        self._stopping: Future[dict[Host, Reply]] | None = None

    @property
    def is_taken_back(self) -> bool:
        return self._stopping is not None

    def note(self, host: Host, reply: Reply) -> None:
        """Take down the last reply of a host."""
        with self._changed:
            self.replies[host] = reply
            self._changed.notify()
        if not reply["ok"] and not self._stopping:
            self._stopping = in_background(self._stop)

    def stopped(self) -> dict[Host, Reply]:
        """Wait until all hosts were stopped, and return their replies."""
        assert self._stopping
        return self._stopping.result()

    def _stop(self) -> dict[Host, Reply]:
        plan, first = self._plan, self._plan.hosts[0]
        if not plan.stops_together or first in self.replies:
            return stop_each(plan)
        of_first = in_background(lambda: stop_each(plan, [first]))
        with self._changed:
            self._changed.wait_for(lambda: len(self.replies) == len(plan.nodes), _HEARING)
            heard = [host for host, reply in self.replies.items() if reply.get("ended") and host != first]
        others = stop_each(plan, {*plan.hosts} - {first, *heard})
        return {**dict.fromkeys(heard, STOPPED), **others, **of_first.result()}


def _has_failed(reply: Reply) -> bool:
    """Return whether a host has failed by itself, rather than because it was stopped."""
    return not (reply["ok"] or reply.get("stopped"))


def _reach_hosts(
    plan: LaunchPlan, unseen: Mapping[Host, Sequence[FileToSend]], reach: Callable[[Host], Transport]
) -> None:
    """Log in to all hosts and send them the files that they cannot see, before any of them starts.

    So the hosts that start first do not wait, until they give up, while the launcher still logs in to others;
    and if a host cannot be reached, there is nothing to stop on the others.

    Raises:
        HostError: hosts failed; no host keeps the files of the run.
    """
    sent: set[Host] = set()
    is_cancelled = Event()

    def commands(host: Host) -> Iterator[list[str]]:
        if host not in unseen:
            yield ["ready"]
            return
        directory = plan.path_on(host.name, plan.exp_dir)
        yield ["vacant", directory]
        for file in unseen[host]:
            if is_cancelled.is_set():
                return
            sent.add(host)
            yield ["put", directory, *file]

    try:
        replies = ask_all(plan, commands, reach=reach, together=True)
        if failed := [(host, reply["message"]) for host, reply in replies.items() if not reply["ok"]]:
            raise host_error("the job was not started:", failed)
    except BaseException:
        is_cancelled.set()
        stop_each(plan, sent)  # removes the secrets
        raise
