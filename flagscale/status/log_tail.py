"""Read the logs of a job's hosts as they grow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from flagscale.errors import FlagScaleError
from flagscale.remote.hosts import at_once, sees_our_files
from flagscale.runners.base import runner_of
from flagscale.values import Host, LaunchPlan, NodeCommand

NOTICE = "flagscale: "
"""Lines of workers that contain this text are meant for the user and are shown while watching."""
_CHUNK = 1 << 20


class LogTail:
    """Reads the new lines of the hosts' logs since the last time."""

    def __init__(self, plan: LaunchPlan) -> None:
        self.plan = plan
        """The plan, updated by the caller: a queue may choose the hosts only when the job starts."""
        self._logs = runner_of(plan).logs
        self._first: int | None = 0
        self._positions: dict[Host, int | None] = {}
        self.troubles: dict[Host, str] = {}
        """Why the log of a host could not be read the last time; no entry if it could."""

    def skip_earlier_runs(self) -> None:
        """Begin at the header line of this run, or at the end if there is none yet."""
        self._first, self._positions = None, {}
        of_all(self.plan, self.plan.nodes, self._find_beginning)

    def lines(self, last: bool = False) -> Iterator[str]:
        """Yield new lines, each preceded by its host's name if there are several hosts.

        An incomplete line is held back until it is complete, unless this is the `last` call.
        """
        pending: Sequence[NodeCommand] = self.plan.nodes
        while pending:
            chunks = of_all(self.plan, pending, lambda node: self._next_chunk(node, last))
            for node, grown in zip(pending, chunks, strict=True):
                prefix = f"{node.host.name}: " if len(self.plan.nodes) > 1 else ""
                for line in grown.decode(errors="replace").removesuffix("\n").split("\n") if grown else ():
                    yield prefix + line
            pending = [node for node, grown in zip(pending, chunks, strict=True) if grown]

    def notices(self) -> Iterator[str]:
        """Yield the new lines that are meant for the user."""
        return (line[line.index(NOTICE) :] for line in self.lines() if NOTICE in line)

    def _find_beginning(self, node: NodeCommand) -> int | None:
        """Return the position to continue reading at; None if the host cannot report it now."""
        host, logs = node.host, self._logs
        position = self._positions.get(host, self._first)
        try:
            if position is None:
                begin = logs.begin_of_run(self.plan, node)
                position = logs.read(self.plan, node, "output", 0, 0)[1] if begin is None else begin
        except FlagScaleError as error:
            self.troubles[host] = str(error)
        self._positions[host] = position
        return position

    def _next_chunk(self, node: NodeCommand, last: bool) -> bytes:
        """Return complete lines, or a piece of a line longer than a chunk; b"" if there are none yet."""
        position = self._find_beginning(node)
        if position is None:
            return b""
        try:
            grown, size = self._logs.read(self.plan, node, "output", position, _CHUNK)
            if size < position and size:
                position = 0  # the user emptied or replaced the log
                grown, _ = self._logs.read(self.plan, node, "output", 0, _CHUNK)
        except FlagScaleError as error:
            self.troubles[node.host] = str(error)
            return b""
        self.troubles.pop(node.host, None)
        whole = grown[: grown.rfind(b"\n") + 1]
        if not whole and (last or len(grown) == _CHUNK):
            whole = grown
        self._positions[node.host] = position + len(whole)
        return whole


def of_all[Value](
    plan: LaunchPlan, nodes: Sequence[NodeCommand], look: Callable[[NodeCommand], Value]
) -> list[Value]:
    """Return `look` of each host's files, called at the same time if some of the hosts have to be asked."""
    if all(sees_our_files(plan, node.host) for node in nodes):
        return [look(node) for node in nodes]
    return at_once(look, nodes)
