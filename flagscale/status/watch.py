"""Watch a running job: with a progress bar in a terminal, with plain lines otherwise."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from types import FrameType

from flagscale.errors import FlagScaleError
from flagscale.remote.hosts import sees_our_files
from flagscale.remote.launcher import HostStatus, OnProgress
from flagscale.run.state import OVER, from_json
from flagscale.runners.base import RunReport, runner_of
from flagscale.status.log_tail import LogTail, of_all
from flagscale.status.model import JobStatus, job_status, taking_part
from flagscale.status.progress import TAIL_BYTES, read_progress
from flagscale.status.services import HostedService, change, has_services
from flagscale.status.text import progress_text, service_lines
from flagscale.values import LaunchPlan, NodeCommand

_POLL = 0.5
_GIVE_UP = 15.0
"""Seconds after which a job that has ended on some hosts counts as ended if the others cannot be asked."""
_CHUNK = 1 << 20


def current_status(plan: LaunchPlan, *, count: bool = True) -> JobStatus:
    """Ask the runner once and read the metrics of this run; `count` as in `JobRunner.report`."""
    report = runner_of(plan).report(plan, count)
    return replace(_joined(report), notes=report.notes, queue=report.queue)


def _joined(report: RunReport) -> JobStatus:
    """Return the status that follows from a report and from the metrics and services of its run."""
    plan, hosts = report.plan, report.hosts
    if report.phase and not any(host.state for host in hosts):
        # Metrics in the run directory are those of an earlier run.
        return job_status(plan, hosts, None, (), report.phase, report.reason)
    started = min((host.state.started for host in hosts if host.state), default=0.0)
    # The last rank writes the metrics, so they are on the last host if the hosts share no file system.
    writing = hosts if plan.has_own_jobs else taking_part(hosts)[-1:]
    found = {host.host.rank: read_progress(_metrics(plan, host), started) for host in writing}
    known = {rank: progress for rank, progress in found.items() if progress}
    slowest = min(known.values(), key=lambda progress: progress.iteration, default=None)
    services = _services(plan, hosts)
    status = job_status(plan, hosts, slowest, services, report.phase, report.reason)
    return replace(status, own_progress=known) if plan.has_own_jobs else status


def metrics_of(status: JobStatus, size: int) -> bytes:
    """Return up to `size` bytes from the end of the metrics file of the host that writes it."""
    host = taking_part(status.hosts)[-1]
    if not _is_readable(status.plan, host):
        return b""
    return _read(status.plan, status.plan.node(host.host.rank), "metrics", -size, size)


def _metrics(plan: LaunchPlan, host: HostStatus) -> bytes:
    """Return the end of a host's metrics file."""
    if not _is_readable(plan, host):
        return b""
    return _read(plan, plan.node(host.host.rank), "metrics", -TAIL_BYTES, TAIL_BYTES)


def _is_readable(plan: LaunchPlan, host: HostStatus) -> bool:
    """Return whether a host's files can be read without asking a host that has just failed to answer."""
    return not host.trouble or sees_our_files(plan, host.host)


def _read(plan: LaunchPlan, node: NodeCommand, name: str, position: int, size: int) -> bytes:
    """Return a piece of a file of the run; b"" if it does not exist, or its host can no longer be reached."""
    try:
        return runner_of(plan).logs.read(plan, node, name, position, size)[0]
    except FlagScaleError:
        return b""  # the status reports a host that cannot be asked


def _services(plan: LaunchPlan, hosts: Sequence[HostStatus]) -> list[HostedService]:
    """Return the states of the services of all hosts that have reported them."""
    asked = [
        (node, host)
        for node, host in zip(plan.nodes, hosts, strict=True)
        if node.services and _is_readable(plan, host)
    ]
    texts = of_all(plan, [node for node, _ in asked], lambda node: _read(plan, node, "services", 0, _CHUNK))
    found: list[HostedService] = []
    for (node, host), text in zip(asked, texts, strict=True):
        for state in from_json(text, plan.run_id):
            # Their agent could not record the end if it was killed.
            over = host.ended and state.phase not in OVER
            found.append((node.host.name, state.entered("stopped", state.since) if over else state))
    return found


def statuses(plan: LaunchPlan, report: Callable[[str], object]) -> Iterator[JobStatus]:
    """Yield the status of a job twice a second until it has ended; that is the last one.

    If the job has ended on some hosts and the others can no longer be asked, the others are given up after a
    while: a host that lost power never answers.

    Args:
        report: called once with a line for every host that cannot be asked, and for each reason of a phase in
            the queue.
    """
    reported: dict[str, str] = {}
    said = ""
    since: float | None = None
    while True:
        status = current_status(plan, count=False)
        for host in status.hosts:
            if host.trouble and reported.get(host.host.name) != host.trouble:
                report(f"{host.host.name}: {host.trouble}")
            reported[host.host.name] = host.trouble
        if status.queue_phase and not status.ended and (now := f"{status.phase}: {status.reason}") != said:
            report(now)
            said = now
        since = (since or time.monotonic()) if status.is_lost else None
        if since and time.monotonic() - since > _GIVE_UP:
            status = replace(status, is_given_up=True)
        yield status
        if status.ended:
            return
        time.sleep(_POLL)


def watch_job(plan: LaunchPlan) -> JobStatus:
    """Show the job's progress until it ends; return its last status. The caller handles Ctrl-C."""
    if has_services(plan):
        return watch_services(plan, lambda status: status.ended)
    tail = LogTail(plan)
    tail.skip_earlier_runs()
    if sys.stdout.isatty():
        return _follow_in_terminal(plan, tail)
    shown = -1
    for status in statuses(plan, _say):
        tail.plan = status.plan
        for line in tail.notices():
            _say(line)
        if status.progress and status.progress.iteration != shown:
            shown = status.progress.iteration
            _say(progress_text(status.progress))
    return status


def _say(line: str) -> None:
    print(line, flush=True)


def watch_services(plan: LaunchPlan, is_enough: Callable[[JobStatus], bool]) -> JobStatus:
    """Show the states of a job's services until `is_enough` or the job has ended; return its last status."""
    tail = LogTail(plan)
    tail.skip_earlier_runs()
    shown: object = None
    # In a terminal, a table that is redrawn; otherwise lines, printed only if something has changed.
    with _table() if sys.stdout.isatty() else nullcontext() as redraw:
        for status in statuses(plan, _say):
            tail.plan = status.plan
            for line in tail.notices():
                _say(line)
            if redraw:
                redraw(service_lines(status.services))
            elif change(status.services) != shown:
                shown = change(status.services)
                _say("\n".join(service_lines(status.services)))
            if is_enough(status):
                break
    return status


# rich is imported by what is shown in a terminal only: each other command would wait for it.
@contextmanager
def _table() -> Iterator[Callable[[Iterable[str]], None]]:
    """Yield a function that replaces the lines it has shown before; they vanish at the end."""
    from rich.console import Console
    from rich.live import Live
    from rich.markup import escape

    with Live(console=Console(), transient=True) as live:
        yield lambda lines: live.update("\n".join(map(escape, lines)))


def _follow_in_terminal(plan: LaunchPlan, tail: LogTail) -> JobStatus:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[text]}"))
    with Progress(*columns, console=Console(), transient=False) as bar:
        task = bar.add_task(plan.name, total=None, text="starting the ranks")

        def say(line: str) -> None:
            bar.console.print(line, markup=False, highlight=False)

        for status in statuses(plan, say):
            tail.plan = status.plan
            for line in tail.notices():
                say(line)
            if status.progress:
                progress = status.progress
                bar.update(
                    task,
                    total=progress.train_iters,
                    completed=progress.iteration,
                    text=progress_text(progress),
                )
    return status


@contextmanager
def interrupted_once() -> Iterator[None]:
    """Raise KeyboardInterrupt at the first Ctrl-C or SIGTERM; ignore later ones, which would end the stop.

    A cloud platform or a queue ends a job with SIGTERM, and may send it repeatedly.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    try:
        for number, reaction in before.items():
            if reaction is not signal.SIG_IGN:
                signal.signal(number, interrupt)
        yield
    finally:
        for number, reaction in before.items():
            if signal.getsignal(number) is interrupt:  # after an interrupt, the command only has to end
                signal.signal(number, reaction)


@contextmanager
def counted(what: str, hosts: int) -> Iterator[OnProgress | None]:
    """Show how many hosts have done something: as a bar in a terminal, as one line per second otherwise."""
    if hosts == 1:
        yield None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=hosts)
            yield lambda done, total: bar.update(task, completed=done)
    else:
        reported = [time.monotonic()]

        def report(done: int, total: int) -> None:
            if done == total or time.monotonic() - reported[0] >= 1:
                reported[0] = time.monotonic()
                print(f"{what}: {done} of {total} hosts", file=sys.stderr, flush=True)

        yield report
