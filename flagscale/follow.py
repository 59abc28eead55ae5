"""Watch a running job: a bar in a terminal, plain lines otherwise."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from flagscale.job import Host, LaunchPlan
from flagscale.launch import launcher
from flagscale.launch.rundir import RunDir
from flagscale.node.output import find_run
from flagscale.progress import progress_text, read_progress
from flagscale.report import JobStatus, job_status

_POLL = 0.5
_CHUNK = 1 << 20
NOTICE = "flagscale: "
"""Lines of the workers with this mark are meant for the user and are shown while following."""


def current_status(plan: LaunchPlan, *, count: bool = True) -> JobStatus:
    """Ask every host once and read the metrics of this run; `count` as in `launcher.status`."""
    hosts = launcher.status(plan, count=count)
    started = min((host.state.started for host in hosts if host.state), default=0.0)
    return job_status(plan, hosts, read_progress(RunDir(Path(plan.exp_dir)).metrics, started))


def follow(plan: LaunchPlan) -> JobStatus:
    """Show the job's progress until it ends; return its last status. Ctrl-C is the caller's to handle."""
    tail = LogTail(plan)
    tail.skip_earlier_runs()
    if sys.stdout.isatty():
        return _follow_in_terminal(plan, tail)
    shown = -1
    while True:
        status = current_status(plan, count=False)
        for line in tail.notices():
            print(line, flush=True)
        if status.progress and status.progress.iteration != shown:
            shown = status.progress.iteration
            print(progress_text(status.progress), flush=True)
        if status.ended:
            return status
        time.sleep(_POLL)


def _follow_in_terminal(plan: LaunchPlan, tail: LogTail) -> JobStatus:
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Bar(*columns, console=Console(), transient=False) as bar:
        task = bar.add_task(plan.name, total=None, text="starting the ranks")
        while True:
            status = current_status(plan, count=False)
            for line in tail.notices():
                bar.console.print(line, markup=False, highlight=False)
            if status.progress:
                progress = status.progress
                bar.update(
                    task,
                    total=progress.train_iters,
                    completed=progress.iteration,
                    text=progress_text(progress),
                )
            if status.ended:
                return status
            time.sleep(_POLL)


class LogTail:
    """Reads what the hosts' logs have grown by since the last time, line by line."""

    def __init__(self, plan: LaunchPlan) -> None:
        run_dir = RunDir(Path(plan.exp_dir))
        self._plan = plan
        self._paths = {node.host: run_dir.output(node.host) for node in plan.nodes}
        self._positions = dict.fromkeys(self._paths, 0)

    def skip_earlier_runs(self) -> None:
        """Begin at the header line of this run; where it has none yet, at the end."""
        for host, path in self._paths.items():
            begin = find_run(path, self._plan.run_id)
            self._positions[host] = begin if begin is not None else _size(path)

    def lines(self, last: bool = False) -> Iterator[str]:
        """Yield new lines, each with its host's name in front where there are several.

        A line that has no end yet waits for it, unless this is the `last` look.
        """
        for host, path in self._paths.items():
            prefix = f"{host.name}: " if len(self._paths) > 1 else ""
            while grown := self._next_chunk(host, path, last):
                for line in grown.decode(errors="replace").removesuffix("\n").split("\n"):
                    yield prefix + line

    def notices(self) -> Iterator[str]:
        """Yield the new lines that are meant for the user."""
        return (line[line.index(NOTICE) :] for line in self.lines() if NOTICE in line)

    def _next_chunk(self, host: Host, path: Path, last: bool) -> bytes:
        """Read whole lines, or a piece of one that is longer than a chunk; b"" where there is none yet."""
        if _size(path) < self._positions[host]:
            self._positions[host] = 0  # the user emptied or replaced the log
        try:
            with path.open("rb") as file:
                file.seek(self._positions[host])
                grown = file.read(_CHUNK)
        except FileNotFoundError:
            return b""
        whole = grown[: grown.rfind(b"\n") + 1]
        if not whole and (last or len(grown) == _CHUNK):
            whole = grown
        self._positions[host] += len(whole)
        return whole


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
