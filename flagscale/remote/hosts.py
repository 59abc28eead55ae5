"""Perform node commands on one host of a plan (`ask`) or on all at once (`ask_all`); read a run's files."""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from queue import SimpleQueue
from threading import Thread, stack_size

from flagscale.errors import FlagScaleError
from flagscale.files import room_for_files
from flagscale.remote.transport import HostAccess, Transport, transport, transport_of_start
from flagscale.run.logs import find_run, path_of, read_piece
from flagscale.run.machine import is_local, name_from_here
from flagscale.run.state import Reply
from flagscale.values import Host, LaunchPlan, NodeCommand

_STACK = 1 << 20
"""Bytes of address space per thread; the usual 8 MiB, 1 000 times, may be more than a limit allows."""
_PATIENCE = 60.0
"""Seconds to wait for a reply, beyond the time that the command itself may take."""


def run_command(plan: LaunchPlan, host: Host, verb: str, *more: str) -> list[str]:
    """Return the words of a node command for the run of this plan, with paths as they are on the host."""
    return [verb, plan.path_on(host.name, plan.exp_dir), str(host.rank), plan.run_id, *more]


def ask(plan: LaunchPlan, host: Host, words: list[str], seconds: float = 0.0) -> Reply:
    """Perform a node command on a host and return its reply; `seconds` is how long the command may take."""
    return transport(access(plan, host)).call(words, seconds + _PATIENCE)


def ask_all(
    plan: LaunchPlan,
    commands_of: Callable[[Host], Iterable[list[str]]],
    seconds: float = 0.0,
    on_reply: Callable[[Host, Reply], None] | None = None,
    hosts: Collection[Host] | None = None,
    reach: Callable[[Host], Transport] | None = None,
    together: bool = False,
) -> dict[Host, Reply]:
    """Perform commands on every host of the plan; return the last reply of each host, in rank order.

    Each host performs one command after another until a reply is not ok. All hosts are asked at the same
    time, however many there are: the start on one host completes only when all others have started.

    Args:
        seconds: how long each command may take.
        on_reply: called with each host and its last reply as they arrive.
        hosts: only these hosts of the plan.
        reach: returns the transport to a host; default: the one that this process keeps.
        together: as in `at_once`.
    """
    asked = plan.hosts if hosts is None else [host for host in plan.hosts if host in hosts]
    room_for_files(len(asked))

    def perform(host: Host) -> Reply:
        way = reach(host) if reach else transport(access(plan, host))
        reply: Reply = {}
        for words in commands_of(host):
            reply = way.call(words, seconds + _PATIENCE)
            if reply.get("ok") is False:
                break
        return reply

    return dict(zip(asked, at_once(perform, asked, on_reply, together=together), strict=True))


def reach_for_start(plan: LaunchPlan, host: Host) -> Transport:
    """Return the transport by which a host is asked and started: a session there becomes the supervisor.

    It cannot if lines of the user come first, because a shell has to run them.
    """
    known = access(plan, host)
    if plan.before_start:
        return transport(known)
    return transport_of_start(replace(known, supervises=(plan.run_id, host.rank)))


STOPPED: Reply = {"ok": True, "ended": True, "message": "stopped"}
"""The reply of a host that a stop has ended without a session there."""


def stop_each(plan: LaunchPlan, hosts: Collection[Host] | None = None) -> dict[Host, Reply]:
    """End the run by a session on each of these hosts (default: on all), as if there were no channel."""
    return ask_all(plan, lambda host: [run_command(plan, host, "stop")], longest_grace(plan), hosts=hosts)


def longest_grace(plan: LaunchPlan) -> float:
    """Return the seconds that the ranks of any host may take to exit."""
    return max(node.stop_grace for node in plan.nodes)


def in_background[Value](work: Callable[[], Value]) -> Future[Value]:
    """Do the work in a thread that ends with this process."""
    outcome: Future[Value] = Future()

    def perform() -> None:
        try:
            outcome.set_result(work())
        except Exception as bug:
            outcome.set_exception(bug)

    Thread(target=perform, daemon=True).start()
    return outcome


def at_once[Item, Value](
    work: Callable[[Item], Value],
    items: Sequence[Item],
    on_value: Callable[[Item, Value], None] | None = None,
    *,
    together: bool = False,
) -> list[Value]:
    """Do the work for all items at the same time; return the outcomes in the order of the items.

    Each item has a thread that ends with this process, so Ctrl-C does not wait for any of them. If the system
    allows fewer threads, they do one item after another.

    Args:
        on_value: called in this thread with each item and its outcome as they arrive.
        together: whether the items wait for each other, so that each must have a thread.

    Raises:
        FlagScaleError: the system does not allow enough threads.
    """
    answers: SimpleQueue[tuple[int, Value | None, Exception | None]] = SimpleQueue()
    places = iter(range(len(items)))

    def perform() -> None:
        for place in places:
            try:
                answers.put((place, work(items[place]), None))
            except Exception as bug:
                answers.put((place, None, bug))

    usual = stack_size(_STACK)
    try:
        for number in range(len(items)):
            try:
                Thread(target=perform, daemon=True).start()
            except RuntimeError:
                if number and not together:
                    break
                what = (
                    f"cannot reach {len(items)} hosts at once: the system allows {number} more threads here"
                )
                raise FlagScaleError(f"{what}; raise the limits of your shell (`ulimit -u`)") from None
    finally:
        stack_size(usual)
    found: dict[int, Value] = {}
    for _ in items:
        place, value, bug = answers.get()
        if bug:
            raise bug
        found[place] = value  # type: ignore[assignment]
        if on_value:
            on_value(items[place], found[place])
    return [found[place] for place in range(len(items))]


def access(plan: LaunchPlan, host: Host) -> HostAccess:
    """Return the data needed to reach a host of the plan."""
    python, source = (plan.path_on(host.name, path) for path in (plan.python, plan.source_root))
    name = name_from_here(plan, host)
    return HostAccess(name, python, source, plan.transport, plan.ssh_port, plan.connect_timeout)


def sees_our_files(plan: LaunchPlan, host: Host) -> bool:
    """Return whether a host's run directory is the one that this launcher sees."""
    is_named_alike = plan.path_on(host.name, plan.exp_dir) == plan.exp_dir
    return is_named_alike and (plan.shared_fs or is_local(name_from_here(plan, host)))


def read(plan: LaunchPlan, node: NodeCommand, name: str, position: int, size: int) -> tuple[bytes, int]:
    """Return a piece of a host's file, as `logs.read_piece`; `name` as in `logs.path_of`.

    Raises:
        FlagScaleError: the host cannot be asked; the message says why.
    """
    if sees_our_files(plan, node.host):
        return read_piece(path_of(plan, node, name), position, size)
    words = run_command(plan, node.host, "read", name, str(position), str(size))
    reply = ask(plan, node.host, words)
    if "data" not in reply:
        raise FlagScaleError(reply["message"])
    return base64.b64decode(reply["data"]), reply["size"]


def begin_of_run(plan: LaunchPlan, node: NodeCommand) -> int | None:
    """Return the position at which this run begins in a host's log, None if it has not begun.

    Raises:
        FlagScaleError: the host cannot be asked; the message says why.
    """
    if sees_our_files(plan, node.host):
        return find_run(path_of(plan, node, "output"), plan.run_id)
    reply = ask(plan, node.host, run_command(plan, node.host, "begin"))
    if "position" not in reply:
        raise FlagScaleError(reply["message"])
    position: int | None = reply["position"]
    return position
