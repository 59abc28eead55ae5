"""Decide what a job leaves open: ranks, rendezvous, environment and paths, by a pure function."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from flagscale.config.schema import Experiment, Runner
from flagscale.config.secrets import is_secret
from flagscale.job import Host, Job, LaunchPlan, NodeCommand
from flagscale.launch.rundir import RunDir
from flagscale.node.processes import marks
from flagscale.platforms import Platform

TORCHRUN = "megatron.flagscale.torchrun"
SHUTDOWN_SECONDS = 3
"""How long torchrun lets the peers of a failed rank end by themselves; they can do no useful work then."""

DEFAULT_PORT = 29500
"""torchrun's own; used between hosts where the user names none."""


def place(
    job: Job,
    experiment: Experiment,
    platforms: Mapping[str, Platform],
    *,
    run_id: str,
    python: str,
    source_root: Path,
    cwd: Path,
) -> LaunchPlan:
    """Return the plan of one start of `job`.

    `platforms` holds the platform of every host by name; `python` and `source_root` are where the hosts find
    the interpreter and FlagScale; `cwd` is the directory that relative paths of the engine's arguments mean.
    """
    run_dir = RunDir(experiment.exp_dir)
    nodes = tuple(
        NodeCommand(
            host=host,
            argv=(python, "-m", TORCHRUN, *_torchrun(job, experiment, host, run_dir, run_id), *_program(job)),
            env=_environment(job, experiment, platforms[host.platform], host, run_id, source_root),
            cwd=str(cwd),
            failure_file=str(run_dir.failure(host)),
            stop_grace=job.role.stop_grace,
        )
        for host in job.hosts
    )
    return LaunchPlan(
        run_id=run_id,
        name=job.name,
        task_type=job.task_type,
        engine=job.engine,
        engine_version=job.engine_version,
        layout=job.layout,
        world_size=job.world_size,
        exp_dir=str(experiment.exp_dir),
        python=python,
        source_root=str(source_root),
        before_start=experiment.cmds.before_start,
        after_stop=experiment.cmds.after_stop,
        start_timeout=experiment.runner.start_timeout,
        nodes=nodes,
    )


def new_run_id(name: str, stamp: str, salt: str) -> str:
    """Return an id for one start: readable, and safe as a file name and as an environment value."""
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', name)[:60]}-{stamp}-{salt}"


def secrets(job: Job, experiment: Experiment) -> dict[str, str]:
    """Return the environment that must not be written into plan, scripts or logs."""
    return {**job.secrets, **{name: value for name, value in experiment.envs.items() if is_secret(name)}}


def _environment(
    job: Job, experiment: Experiment, platform: Platform, host: Host, run_id: str, source_root: Path
) -> dict[str, str]:
    named = {name: value for name, value in experiment.envs.items() if not is_secret(name)}
    if "PYTHONPATH" in named:
        named["PYTHONPATH"] = f"{source_root}:{named['PYTHONPATH']}"
    return {
        **platform.env,
        **job.role.env,
        **named,
        **marks(run_id, host.rank),
        "FLAGSCALE_FAILURE_FILE": str(RunDir(experiment.exp_dir).failure(host)),
    }


def _program(job: Job) -> tuple[str, ...]:
    entrypoint = job.role.entrypoint
    return ((entrypoint,) if entrypoint.endswith(".py") else ("--module", entrypoint)) + job.role.argv


def _torchrun(job: Job, experiment: Experiment, host: Host, run_dir: RunDir, run_id: str) -> list[str]:
    runner = experiment.runner
    words = {
        "nnodes": len(job.hosts),
        "nproc-per-node": host.slots,
        "node-rank": host.rank if len(job.hosts) > 1 else None,
        **_rendezvous(runner, len(job.hosts), job.hosts[0].name),
        "rdzv-id": runner.rdzv_id or run_id,
        "rdzv-conf": runner.rdzv_conf,
        "max-restarts": runner.max_restarts,
        "monitor-interval": runner.monitor_interval,
        "shutdown-timeout": SHUTDOWN_SECONDS,
        "log-dir": runner.log_dir or run_dir.details(host),
        "redirects": runner.redirects,
        "tee": runner.tee,
    }
    return [word for name, value in words.items() if value is not None for word in (f"--{name}", str(value))]


def _rendezvous(runner: Runner, hosts: int, master: str) -> dict[str, object]:
    """How the launchers of all hosts find each other.

    On one host torchrun itself picks a free port (0), which leaves no gap in which another program takes it.
    """
    address = runner.master_addr or ("127.0.0.1" if hosts == 1 else master)
    port = runner.master_port or DEFAULT_PORT
    backend, endpoint, local = runner.rdzv_backend, runner.rdzv_endpoint, runner.local_addr
    named = endpoint or runner.master_addr or runner.master_port
    if hosts == 1 and not named and backend in (None, "c10d"):
        backend, endpoint, local = "c10d", "127.0.0.1:0", local or "127.0.0.1"
    if endpoint is None and backend in (None, "static"):
        return {"rdzv-backend": "static", "master-addr": address, "master-port": port, "local-addr": local}
    return {
        "rdzv-backend": backend or "c10d",
        "rdzv-endpoint": endpoint or f"{address}:{port}",
        "local-addr": local,
    }
