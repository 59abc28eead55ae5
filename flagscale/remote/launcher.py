"""Start, query and stop a plan on all hosts at once; a failing host never hides the outcome of the others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from secrets import token_hex
from threading import Event

from flagscale.errors import FlagScaleError
from flagscale.files import room_for_files
from flagscale.plan.render import scripts
from flagscale.remote.hosts import (
    STOPPED,
    ask,
    ask_all,
    at_once,
    longest_grace,
    run_command,
    sees_our_files,
    stop_each,
)
from flagscale.remote.start import OnProgress, start_hosts, unseen_files
from flagscale.run.env import CHANNEL_SECRET
from flagscale.run.rundir import RunDir
from flagscale.run.state import ENDED, HostState, Reply, from_dict, read_state
from flagscale.values import Host, LaunchPlan

_POLL = 0.1
_LEAVING = 10.0
"""Seconds that the supervisor of a run that has just ended may take to exit."""
_FIRST_ANSWER = 5.0
"""Seconds that a stop waits for the first host's answer before it turns to the others."""
_CONFIRMING = 20.0
"""Seconds, in addition to the longest grace, that the first host has to end the others too."""


@dataclass(frozen=True)
class HostStatus:
    """A host of a plan; `state` is None if it has no state, `trouble` says why it could not be asked."""

    host: Host
    state: HostState | None
    processes: int | None = None
    """The number of living processes of the run; None if they were not counted."""
    trouble: str = ""

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to wait for; False if the host could not be asked."""
        if self.state is None:
            return not self.trouble and not self.processes
        return not self.trouble and self.state.phase in ENDED


Earlier = Callable[[LaunchPlan], tuple[str, Sequence[HostStatus]]]
"""Returns why an earlier job keeps its run directory ("": see its hosts), and the states of its hosts."""


def _on_its_hosts(plan: LaunchPlan) -> tuple[str, Sequence[HostStatus]]:
    return "", status(plan)


def start(
    plan: LaunchPlan,
    config: str,
    secrets: Mapping[str, str],
    done: OnProgress | None = None,
    earlier: Earlier = _on_its_hosts,
) -> None:
    """Record the plan in its run directory and start it on every host; all hosts run it, or none does.

    Args:
        secrets: environment variables of the job that must not be recorded.
        done: called with the number of hosts that have started, and the number of all hosts.
        earlier: as in `refuse_if_running`.

    Raises:
        FlagScaleError: a job is still running in the run directory, or another launcher is starting one.
        HostError: a host could not start; the others were stopped again.
    """
    secrets = with_channel_secret(plan, secrets)
    texts = scripts(plan)
    with recorded(plan, texts, config, secrets, earlier):
        try:
            start_hosts(plan, unseen_files(plan, texts, secrets), done)
        finally:
            RunDir(Path(plan.exp_dir)).forget_secrets(plan.hosts)


def with_channel_secret(plan: LaunchPlan, secrets: Mapping[str, str]) -> Mapping[str, str]:
    """Return the secrets of a start; if it has several hosts, with a new one that their supervisors share."""
    return {**secrets, CHANNEL_SECRET: token_hex(32)} if plan.channel else secrets


@contextmanager
def recorded(
    plan: LaunchPlan, texts: Mapping[Path, str], config: str, secrets: Mapping[str, str], earlier: Earlier
) -> Iterator[None]:
    """Hold the run directory, with one start recorded in it; remove its secrets again if that fails.

    Args:
        texts: the text of each script by path.

    Raises:
        FlagScaleError: as `start`.
    """
    run_dir = RunDir(Path(plan.exp_dir))
    with run_dir.starting():
        refuse_if_running(run_dir, plan, earlier)
        try:
            ours = {host: secrets for host in plan.hosts if secrets and sees_our_files(plan, host)}
            run_dir.write_launch(plan, texts, config, ours)
            yield
        except BaseException:
            run_dir.forget_secrets(plan.hosts)
            raise


def refuse_if_running(run_dir: RunDir, new: LaunchPlan, ask: Earlier = _on_its_hosts) -> None:
    """Raise a FlagScaleError if a job of this run directory is still running on any host, or is queued.

    If the job had several hosts, one that cannot be asked and is not part of the `new` plan does not count:
    its supervisor ends its part of the run when it has lost the others.

    Args:
        ask: asks the earlier job; default: its hosts, because it has no queue.
    """
    earlier = run_dir.read_plan()
    if earlier is None or _was_stopped_everywhere(earlier):
        return
    wanted = {host.name for host in new.hosts}
    deadline = time.monotonic() + _LEAVING
    while True:
        kept, hosts = ask(earlier)
        if kept:
            what = f"run {earlier.run_id} of {run_dir.path} is {kept}"
            raise FlagScaleError(f"{what}; stop it first, or use another experiment.exp_dir")
        unended = [host for host in hosts if host.processes or not host.ended]
        if unended and all(host.ended for host in unended) and time.monotonic() < deadline:
            time.sleep(_POLL)
            continue
        unended = [
            host
            for host in unended
            if not host.trouble or earlier.channel is None or host.host.name in wanted
        ]
        if not unended:
            return
        found = unended[0]
        reported = f"a job is still running in {run_dir.path}"
        living = "" if found.processes is None else f" with {found.processes} processes"
        reason, hint = f"run {earlier.run_id}{living}", "stop it first, or use another experiment.exp_dir"
        if found.trouble:
            reported, reason = f"cannot tell whether a job is still running in {run_dir.path}", found.trouble
            hint += f", or remove {run_dir.plan} if none of its processes are running"
        raise FlagScaleError(f"{reported} ({found.host.name}: {reason}); {hint}")


def _was_stopped_everywhere(plan: LaunchPlan) -> bool:
    """Return whether a stop has recorded that it left nothing on any host, so that none has to be asked."""
    first = plan.hosts[0]
    state = _recorded_end(plan, first)
    return (
        plan.stops_together
        and state is not None
        and state.is_tidied
        and {first.rank, *state.ended_with} == {host.rank for host in plan.hosts}
    )


def status(plan: LaunchPlan, *, count: bool = True) -> list[HostStatus]:
    """Return the state of every host, in rank order; cheaper without `count`, the number of processes.

    Processes are not counted either if one host vouches for all.
    """
    if running := _all_running(plan):
        return running
    found = []
    more = ["count"] if count else []
    for host, reply in ask_all(plan, lambda host: [run_command(plan, host, "status", *more)]).items():
        if reply.get("ok") is False:
            state = _recorded_end(plan, host)
            found.append(HostStatus(host, state, trouble="" if state else reply["message"]))
        else:
            living = reply.pop("processes")
            state = from_dict(reply) if reply else None
            found.append(HostStatus(host, state, living if count or state is None else None))
    return found


def _recorded_end(plan: LaunchPlan, host: Host) -> HostState | None:
    """Return how a host's part ended if that can be read here, so that the host need not be asked."""
    if not sees_our_files(plan, host):
        return None
    try:
        state = read_state(RunDir(Path(plan.exp_dir)).state(host), plan.run_id)
    except FlagScaleError:
        return None
    return state if state and state.phase in ENDED else None


def _all_running(plan: LaunchPlan) -> list[HostStatus] | None:
    """Return the states that the hosts have recorded, if the first host vouches that all of them are running.

    Its supervisor hears from the others every second and ends the job if it does not. So asking one host is
    enough, however many there are. None if it is not: the hosts share no files, or not all are running.
    """
    if plan.channel is None or not all(sees_our_files(plan, host) for host in plan.hosts):
        return None
    files = RunDir(Path(plan.exp_dir))
    try:
        states = [read_state(files.state(host), plan.run_id) for host in plan.hosts]
    except FlagScaleError:
        return None  # that host reports the error itself
    if not all(state and state.phase == "running" for state in states):
        return None
    reported = ask(plan, plan.hosts[0], run_command(plan, plan.hosts[0], "status"))
    members = reported.get("members") or plan.nodes
    if reported.get("phase") != "running" or len(members) < len(plan.nodes):
        return None
    return [HostStatus(*pair) for pair in zip(plan.hosts, states, strict=True)]


def stop(plan: LaunchPlan) -> dict[Host, Reply]:
    """End the run on every host; each reply says what happened there.

    Usually one session is enough: the first host's supervisor ends those of the others, which confirm to it
    that nothing is left. Every host that does not confirm this is asked itself.
    """
    if not plan.stops_together:
        return stop_each(plan)
    first, longest = plan.hosts[0], longest_grace(plan)
    linked: set[int] = set()
    ended: set[int] = set()
    is_linked, has_ended = Event(), Event()

    def stop_first() -> Reply:
        reply = ask(plan, first, run_command(plan, first, "status"))
        if reply.get("phase") == "running":
            linked.update(reply["members"] or [host.rank for host in plan.hosts])
        is_linked.set()
        if not reply.get("unreachable"):
            reply = ask(plan, first, run_command(plan, first, "stop"), longest)
            ended.update(reply.pop("ended_with", ()))
        has_ended.set()
        return reply

    def stop_other(host: Host) -> Reply:
        if is_linked.wait(_FIRST_ANSWER) and host.rank in linked:
            has_ended.wait(longest + _CONFIRMING)
        return {} if host.rank in ended else ask(plan, host, run_command(plan, host, "stop"), longest)

    room_for_files(len(plan.hosts))
    replies = at_once(lambda host: stop_first() if host == first else stop_other(host), plan.hosts)
    return {
        # A session that came late has found nothing, because the first host had ended it.
        host: STOPPED if host.rank in ended and reply.get("ok", True) else reply
        for host, reply in zip(plan.hosts, replies, strict=True)
    }
