"""Node commands on many hosts at once; every host has a reply, and none waits for another."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from queue import SimpleQueue
from threading import Thread

from flagscale.errors import FlagScaleError
from flagscale.files import room_for_files
from flagscale.remote.transport import HostAccess, transport
from flagscale.run.logs import find_run, path_of, read_piece
from flagscale.run.machine import is_local, name_from_here
from flagscale.run.state import Reply
from flagscale.values import Host, LaunchPlan, NodeCommand

_PATIENCE = 60.0
"""Seconds for a command's answer, beyond what the command itself may take."""


def call_all(plan: LaunchPlan, verb: str, *more: str, seconds: float = 0.0) -> dict[Host, Reply]:
    """Perform a node command of this plan on all its hosts; the replies are in rank order.

    Args:
        seconds: how long the command itself may take.
    """
    return each(plan, lambda host: [_words(plan, host, verb, more)], seconds)


def each(
    plan: LaunchPlan, commands_of: Callable[[Host], Sequence[list[str]]], seconds: float = 0.0
) -> dict[Host, Reply]:
    """Perform commands on each host; see `as_they_come`. The replies are in rank order."""
    replies = dict(as_they_come(plan, commands_of, seconds))
    return {host: replies[host] for host in plan.hosts}


def as_they_come(
    plan: LaunchPlan, commands_of: Callable[[Host], Iterable[list[str]]], seconds: float = 0.0
) -> Iterator[tuple[Host, Reply]]:
    """Perform commands on each host, one after another until one is not ok; a host's reply is its last one.

    All hosts at once, whatever their number: a start of one is over when those of all others have begun.
    Ctrl-C does not wait for hosts that have not answered: the threads end with the command.
    """
    room_for_files(len(plan.hosts))

    def perform(host: Host) -> Reply:
        reply: Reply = {}
        way = transport(access(plan, host))
        for words in commands_of(host):
            reply = way.call(words, seconds + _PATIENCE)
            if reply.get("ok") is False:
                break
        return reply

    return at_once(perform, plan.hosts)


def at_once[Item, Value](
    work: Callable[[Item], Value], items: Iterable[Item]
) -> Iterator[tuple[Item, Value]]:
    """Do the work for all items at once, each in a thread that ends with the command; yield as they come."""
    answers: SimpleQueue[tuple[Item, Value | None, Exception | None]] = SimpleQueue()

    def perform(item: Item) -> None:
        try:
            answers.put((item, work(item), None))
        except Exception as bug:
            answers.put((item, None, bug))

    threads = [Thread(target=perform, args=(item,), daemon=True) for item in items]
    for thread in threads:
        thread.start()
    for _ in threads:
        item, value, bug = answers.get()
        if bug:
            raise bug
        yield item, value  # type: ignore[misc]


def in_order[Item, Value](work: Callable[[Item], Value], items: Sequence[Item]) -> list[Value]:
    """Do the work for all items at once; return the outcomes in the order of the items."""
    found = dict(at_once(lambda place: work(items[place]), range(len(items))))
    return [found[place] for place in range(len(items))]


def access(plan: LaunchPlan, host: Host) -> HostAccess:
    """Return how a host of the plan is reached."""
    python, source = (plan.path_on(host.name, path) for path in (plan.python, plan.source_root))
    name = name_from_here(plan, host)
    return HostAccess(name, python, source, plan.transport, plan.ssh_port, plan.connect_timeout)


def sees_our_files(plan: LaunchPlan, host: Host) -> bool:
    """Whether a host's run directory is the one that this launcher sees."""
    is_named_alike = plan.path_on(host.name, plan.exp_dir) == plan.exp_dir
    return is_named_alike and (plan.shared_fs or is_local(name_from_here(plan, host)))


def read(plan: LaunchPlan, node: NodeCommand, name: str, position: int, size: int) -> tuple[bytes, int]:
    """Return what `files.read_piece` reads of a host's `output` or `metrics`.

    Raises:
        FlagScaleError: the host cannot be asked; says why.
    """
    if sees_our_files(plan, node.host):
        return read_piece(path_of(plan, node, name), position, size)
    reply = ask(plan, node, "read", name, str(position), str(size))
    if "data" not in reply:
        raise FlagScaleError(reply["message"])
    return base64.b64decode(reply["data"]), reply["size"]


def begin_of_run(plan: LaunchPlan, node: NodeCommand) -> int | None:
    """Return where this run begins in a host's log, None where it has not begun; raises as `read`."""
    if sees_our_files(plan, node.host):
        return find_run(path_of(plan, node, "output"), plan.run_id)
    reply = ask(plan, node, "begin")
    if "position" not in reply:
        raise FlagScaleError(reply["message"])
    position: int | None = reply["position"]
    return position


def ask(plan: LaunchPlan, node: NodeCommand, verb: str, *more: str) -> Reply:
    """Perform a node command of this plan on one host."""
    return transport(access(plan, node.host)).call(_words(plan, node.host, verb, more), _PATIENCE)


def _words(plan: LaunchPlan, host: Host, verb: str, more: Sequence[str]) -> list[str]:
    return [verb, plan.path_on(host.name, plan.exp_dir), str(host.rank), plan.run_id, *more]
