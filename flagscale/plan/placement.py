"""Decide everything that a job leaves open, by a pure function: ranks, rendezvous, environment and paths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from flagscale.config.schema import PASSED_TO_TORCHRUN, Experiment, Runner
from flagscale.config.secrets import is_secret
from flagscale.plan.runner import Share
from flagscale.platforms import Platform
from flagscale.run.env import CHIP, FAILURE_FILE, HEARTBEAT_FILE, import_path, run_tags
from flagscale.run.rundir import RunDir
from flagscale.values import (
    DEFAULT_PORT,
    Channel,
    Host,
    Job,
    LaunchPlan,
    Machine,
    NodeCommand,
    Recovery,
    Rendezvous,
    Role,
    Service,
    address_of,
)

TORCHRUN = "megatron.flagscale.torchrun"


def build_plan(
    job: Job,
    experiment: Experiment,
    platforms: Mapping[str, Platform],
    *,
    run_id: str,
    python: str,
    source_root: Path | None,
    cwd: Path,
    share: Share,
    rendezvous: Rendezvous | None = None,
    fewer_hosts: tuple[int, ...] = (),
    started_on: Machine | None = None,
) -> LaunchPlan:
    """Return the plan of one start of `job`.

    `platforms` holds the platform of every host by name; `python` is the interpreter of the hosts and
    `source_root` the clone that it imports FlagScale from (None: it is installed there); relative paths in
    the engine's arguments are relative to `cwd`; `share` is the part of the run that this command starts;
    `rendezvous` is where several hosts meet, as reported by the hosts (default: as configured);
    `fewer_hosts` are the smaller numbers of hosts that the job may continue with; `started_on` is this
    machine.
    """
    run_dir, runner = RunDir(share.run_dir), experiment.runner
    here = [host for host in job.hosts if share.rank in (None, host.rank)]
    rendezvous = rendezvous or _configured_rendezvous(runner, job)
    # If each command starts one host, their run ids differ.
    rendezvous_id = runner.rdzv_id or (run_id if share.rank is None else _safe(experiment.name))
    nodes = tuple(
        NodeCommand(
            host=host,
            argv=(
                _services_agent(python, run_dir, host, run_id) if job.services else (python, "-m", TORCHRUN)
            ),
            options={} if job.services else _torchrun(job, runner, host, run_dir, rendezvous_id, rendezvous),
            program=() if job.services else _ranks(job.own_roles.get(host.rank, job.role)),
            env=_environment(job, experiment, platforms[host.platform], host, run_dir, run_id, source_root),
            cwd=str(cwd),
            failure_file=str(run_dir.failure(host)),
            stop_grace=job.role.stop_grace,
            services=_services(job, host, python, rendezvous),
            job_dir=str(run_dir.own_of(host).path) if job.own_roles else "",
        )
        for host in here
    )
    return LaunchPlan(
        run_id=run_id,
        name=job.name,
        task_type=job.task_type,
        engine=job.engine,
        engine_version=job.engine_version,
        layout=job.layout,
        picture=job.picture,
        world_size=job.world_size,
        exp_dir=str(run_dir.path),
        job_dir=str(experiment.exp_dir) if run_dir.path != experiment.exp_dir else "",
        python=python,
        source_root=str(source_root or ""),
        before_start=experiment.cmds.before_start,
        after_stop=experiment.cmds.after_stop,
        start_timeout=runner.start_timeout,
        ready_timeout=runner.ready_timeout,
        nodes=nodes,
        channel=_channel(rendezvous) if len(here) > 1 and not job.own_roles else None,
        recovery=Recovery(runner.max_restarts, runner.restart_timeout, runner.hang_timeout, fewer_hosts),
        runner=runner.type,
        slurm=runner.slurm.model_dump(exclude_defaults=True),
        transport=runner.transport,
        ssh_port=runner.ssh_port,
        connect_timeout=runner.connect_timeout,
        shared_fs=not runner.no_shared_fs,
        host_paths=runner.host_paths,
        started_on=started_on,
    )


def new_run_id(name: str, stamp: str, salt: str) -> str:
    """Return an id for one start that is readable and safe in file names and environment variables."""
    return f"{_safe(name)}-{stamp}-{salt}"


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name)[:60]


def secrets(job: Job, experiment: Experiment) -> dict[str, str]:
    """Return the environment variables that must not be written to the plan, scripts or logs."""
    return {
        **job.secrets,
        **{name: value for name, value in experiment.envs.common().items() if is_secret(name)},
    }


def _environment(
    job: Job,
    experiment: Experiment,
    platform: Platform,
    host: Host,
    run_dir: RunDir,
    run_id: str,
    source_root: Path | None,
) -> dict[str, str]:
    given = experiment.envs.on_host(host.name, host.platform)
    named = {name: value for name, value in given.items() if not is_secret(name)}
    if source_root and "PYTHONPATH" in named:
        named["PYTHONPATH"] = import_path(str(source_root), named["PYTHONPATH"])
    return {
        **platform.env,
        **({} if job.services else {CHIP: platform.name, **platform.rank_env}),
        **job.role.env,
        **named,
        **run_tags(run_id, host.rank),
        FAILURE_FILE: str(run_dir.failure(host)),
        HEARTBEAT_FILE: str(run_dir.heartbeat(host)),
    }


def _services_agent(python: str, run_dir: RunDir, host: Host, run_id: str) -> tuple[str, ...]:
    return (python, "-m", "flagscale.node", "services", str(run_dir.path), str(host.rank), run_id)


def _services(job: Job, host: Host, python: str, rendezvous: Rendezvous) -> tuple[Service, ...]:
    """Return the services of a host with complete command lines, including the addresses of hosts."""

    def start(one: Service) -> tuple[str, ...]:
        entrypoint = one.entrypoint or job.role.entrypoint
        return (python, entrypoint) if entrypoint.endswith(".py") else (python, "-m", entrypoint)

    def filled(text: str) -> str:
        for rank, address in rendezvous.addresses.items():
            in_url = f"[{address}]" if ":" in address else address
            text = text.replace(f"://{address_of(rank)}", f"://{in_url}").replace(address_of(rank), address)
        return text

    return tuple(
        replace(
            one,
            argv=(*start(one), *map(filled, one.argv)),
            url=filled(one.url),
            env={name: filled(value) for name, value in one.env.items()},
        )
        for one in job.services.get(host.rank, ())
    )


def _channel(rendezvous: Rendezvous) -> Channel:
    return Channel(rendezvous.address, rendezvous.channel_port)


def _ranks(role: Role) -> tuple[str, ...]:
    entrypoint = role.entrypoint
    return ((entrypoint,) if entrypoint.endswith(".py") else ("--module", entrypoint)) + role.argv


def _configured_rendezvous(runner: Runner, job: Job) -> Rendezvous:
    """Return where the hosts meet according to the configuration."""
    address = runner.master_addr or ("127.0.0.1" if len(job.hosts) == 1 else job.hosts[0].name)
    names = {host.rank: host.name for host in job.hosts}
    return Rendezvous(address, runner.master_port or DEFAULT_PORT, addresses={**names, 0: address})


def _torchrun(
    job: Job, runner: Runner, host: Host, run_dir: RunDir, rendezvous_id: str, rendezvous: Rendezvous
) -> dict[str, str]:
    hosts = len(job.hosts)
    if job.own_roles:
        hosts, runner = 1, runner.model_copy(update={"master_addr": None})
        rendezvous = Rendezvous("127.0.0.1", runner.master_port or DEFAULT_PORT)
    options = {
        "nnodes": hosts,
        "nproc-per-node": host.slots,
        "node-rank": host.rank if hosts > 1 else None,
        **_rendezvous(runner, hosts, rendezvous),
        "rdzv-id": rendezvous_id,
        "max-restarts": 0,
        **{name.replace("_", "-"): getattr(runner, name) for name in PASSED_TO_TORCHRUN},
    }
    options["log-dir"] = runner.log_dir or run_dir.details(host)
    given = {name: value for name, value in options.items() if value is not False and value not in (None, "")}
    return {name: "" if value is True else str(value) for name, value in given.items()}


def _rendezvous(runner: Runner, hosts: int, rendezvous: Rendezvous) -> dict[str, object]:
    """Return the options by which the agents of all hosts find each other.

    On one host torchrun itself picks a free port (0), so that no other process can take it in between.
    """
    address, port = rendezvous.address, rendezvous.port
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
