"""The text that commands print for people: a plan, a started job, a status, a progress line."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flagscale.formats import count, duration, key_text, quantity
from flagscale.run.rundir import RunDir
from flagscale.run.state import ServiceState
from flagscale.runners.base import all_scripts
from flagscale.status.model import JobStatus, failed_attempts, phase_of
from flagscale.status.progress import Progress
from flagscale.status.services import Endpoint, HostedService, endpoints, has_services, in_order, servers
from flagscale.values import LaunchPlan


def plan_text(plan: LaunchPlan, config: str, remarks: Sequence[str] = ()) -> str:
    """Return everything that `run` would do: the resolved configuration, the scripts, the commands.

    `remarks`: lines about the job, below its hosts.
    """
    run_dir = _run_dir(plan)
    lines = [f"{plan.name}: {_size(plan)} on {_hosts(plan)}, {plan.layout}"]
    for node in plan.nodes:
        slots = count(node.host.slots, "slot" if node.services else "rank")
        lines.append(f"  host {node.host.rank}  {node.host.name}  {slots}  {node.host.platform}")
        for one in node.services:
            behind = f"  behind {one.behind}" if one.url and one.behind else ""
            lines.append(f"    {one.name}  {one.url}{behind}".rstrip())
    lines += [f"  {line}" for line in remarks]
    lines += ["", plan.picture] if plan.picture else []
    lines += ["", f"# {run_dir.config}", config.rstrip("\n")]
    for path, text in all_scripts(plan).items():
        lines += ["", f"# {path}", text.rstrip("\n")]
    return "\n".join(lines)


def started_text(plan: LaunchPlan) -> str:
    """Return the paths of a started job and the next commands."""
    run_dir, job_dir = _run_dir(plan), RunDir(Path(plan.job_dir or plan.exp_dir))
    hosts = _hosts(plan)
    lines = [
        f"{plan.name}: {_size(plan)} on {hosts} ({plan.layout}), run {plan.run_id}",
        f"  logs         {run_dir.logs}",
    ]
    if plan.has_own_jobs:
        lines += [f"  {node.host.name:11}  {node.job_dir}" for node in plan.nodes]
    elif not has_services(plan):
        lines += [f"  metrics      {job_dir.metrics}", f"  checkpoints  {job_dir.checkpoints}"]
    lines += [f"  {model}  {url}/v1" for model, url in servers(plan)]
    return "\n".join([*lines, "  manage it by the same command with action=query, logs or stop"])


def status_text(status: JobStatus) -> str:
    """Return the status of a job for people."""
    plan = status.plan
    lines = [
        f"{plan.name}: {status.phase}  ({_size(plan)} on {_hosts(plan)}, {plan.layout}, run {plan.run_id})"
    ]
    lines += [f"  {line}" for line in (status.reason, *status.notes) if line]
    lines += [f"  {line}" for line in service_lines(status.services)]
    if status.progress and not status.own_progress:
        lines.append(f"  {progress_text(status.progress)}")
        for key, one in status.progress.evaluations.items():
            lines.append(f"  {key_text(key)} {one.value:.4f} at iteration {one.iteration}")
        lines += [f"  {line}" for line in slow_rank_lines(status.progress)]
    for host in status.hosts:
        phase = phase_of(status, host)
        living = f"  {count(host.processes, 'process')}" if host.processes else ""
        unseen = "run plan not found on this host" if host.processes else "nothing was started here yet"
        trouble = host.trouble or ("" if host.state or status.queue_phase else unseen)
        own = status.own_progress.get(host.host.rank)
        reached = f"  {progress_text(own)}" if own else ""
        row = f"  host {host.host.rank}  {host.host.name}  {phase}{living}{reached}  {trouble}"
        lines.append(row.rstrip())
    for number, (name, attempt) in enumerate(failed_attempts(status), start=1):
        ended = time.strftime("%H:%M:%S", time.localtime(attempt.ended))
        lines.append(f"  attempt {number} ended at {ended}: host {name}: {attempt.failure.message}")
    if status.failure:
        lines += failure_lines(status)
    return "\n".join(lines)


def failure_lines(status: JobStatus) -> list[str]:
    """Return the first failure with its traceback and the paths of the logs."""
    if status.failure is None:
        return []
    name, failure = status.failure
    rank = f", rank {failure.rank}" if failure.rank is not None else ""
    lines = [f"  first failure: host {name}{rank}: {failure.message}"]
    lines += [f"    {line}" for line in failure.traceback.rstrip().splitlines()]
    host = next(node.host for node in status.plan.nodes if node.host.name == name)
    if failure.log:
        whose = "service" if has_services(status.plan) else "rank"
        lines.append(f"  log of the {whose}: {failure.log}")
    return [*lines, f"  log of the host: {_run_dir(status.plan).output(host)}"]


def progress_text(progress: Progress) -> str:
    """Return `iteration 120/160  loss 5.9123  3.12k tokens/s  0.4 TFLOP/s per device  1m03s left`."""
    record = progress.record
    total = f"/{progress.train_iters}" if progress.train_iters else ""
    parts = [f"iteration {progress.iteration}{total}"]
    if isinstance(record.get("lm_loss"), int | float):
        parts.append(f"loss {record['lm_loss']:.4f}")
    if isinstance(record.get("tokens_per_s"), int | float):
        parts.append(f"{quantity(record['tokens_per_s'])} tokens/s")
    if isinstance(record.get("tflops_per_gpu"), int | float):
        parts.append(f"{record['tflops_per_gpu']:.3g} TFLOP/s per device")
    if record.get("skipped"):
        parts.append(f"{record['skipped']} skipped")
    if record.get("bad_losses"):
        parts.append(count(record["bad_losses"], "bad loss"))
    if progress.seconds_left:
        parts.append(f"{duration(progress.seconds_left)} left")
    return "  ".join(parts)


def slow_rank_lines(progress: Progress) -> list[str]:
    """Return one line per rank that is slow in the newest logged iteration."""
    found = progress.record.get("slow_ranks")
    return [
        f"rank {one['rank']} on {one['host']} takes {one['factor']:.2f} times as long as its stage's median"
        for one in (found if isinstance(found, list) else ())
    ]


def service_lines(services: Sequence[HostedService]) -> list[str]:
    """Return one line per service, with names and addresses in columns; instances follow their endpoint."""
    totals = {endpoint.router.name: endpoint for endpoint in endpoints(services)}
    several_hosts = len({host for host, _ in services}) > 1
    rows = []
    for depth, (host, state) in in_order(services):
        where = f" on {host}" if several_hosts and state.behind else ""
        total = totals.get(state.name)
        text = _endpoint_text(total) if total else _text(state, f"{_phase_text(state)}{where}")
        rows.append(("  " * depth + state.name, state.url or host, text))
    wide = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    return [f"{name:{wide[0]}}  {place:{wide[1]}}  {text}".rstrip() for name, place, text in rows]


def _endpoint_text(endpoint: Endpoint) -> str:
    """Return how many instances are ready, and their load; before it the phase of the router if it is not."""
    ready = f"{endpoint.ready} of {count(len(endpoint.instances), 'instance')} ready"
    # What the instances print is of more interest than the last line of their router.
    phase = _phase_text(replace(endpoint.router, last_line=""))
    return _text(endpoint.total, ready if phase == "ready" else f"{phase}  {ready}")


def _phase_text(state: ServiceState) -> str:
    passed = duration(max(0.0, time.time() - state.since))
    if state.phase == "failed":
        return f"failed {passed} ago"
    if state.phase not in ("starting", "restarting"):
        return state.phase
    what = "starting" if state.phase == "starting" else f"restart {state.restarts}"
    return f"{what} for {passed}{f': {state.last_line}' if state.last_line else ''}"


def _text(state: ServiceState, phase: str) -> str:
    parts = [phase]
    if state.failure and state.phase in ("failed", "restarting"):
        parts.append(state.failure.message)
        parts += [f"log {state.failure.log}"] if state.failure.log else []
    if state.total is not None:
        parts.append(f"{state.done}/{state.total} {state.unit}")
    if state.requests_running is not None:
        parts.append(f"{state.requests_running} running, {state.requests_waiting} waiting")
    if state.tokens_per_s is not None:
        parts.append(f"{quantity(state.tokens_per_s)} tokens/s")
    if state.url and state.model and state.phase in ("ready", "unhealthy"):
        parts.append(f"model {state.model}")
    if state.restarts and state.phase != "restarting":
        parts.append(count(state.restarts, "restart"))
    return "  ".join(parts)


def _hosts(plan: LaunchPlan) -> str:
    """Return `3 hosts`, or, with a platform, which of its hosts this is."""
    if plan.job_dir:
        return f"the platform's hosts, this is host {plan.hosts[0].rank}"
    return count(len(plan.nodes), "host")


def _size(plan: LaunchPlan) -> str:
    """Return `4 ranks`, or `2 services` if the job runs services."""
    services = sum(len(node.services) for node in plan.nodes)
    return count(services, "service") if services else count(plan.world_size, "rank")


def _run_dir(plan: LaunchPlan) -> RunDir:
    return RunDir(Path(plan.exp_dir))
