"""`action=check`: what the hosts themselves say before a job is trusted to them."""

from __future__ import annotations

from dataclasses import dataclass

from flagscale import __version__, platforms
from flagscale.config.schema import Experiment
from flagscale.errors import HostError, Problem
from flagscale.job import Host, Job
from flagscale.launch import launcher
from flagscale.node.commands import Reply

_MIN_FREE = 5 * 2**30
"""Bytes below which a checkpoint of even a small model may not fit."""


@dataclass(frozen=True)
class Outcome:
    """One check on one host (or of the configuration as a whole)."""

    ok: bool
    host: str
    text: str


def preflight(experiment: Experiment, job: Job, distribution: str) -> list[Outcome]:
    """Ask every host of the job and return all outcomes, good and bad."""
    port = experiment.runner.master_port or 0
    replies = _probe(experiment, job.hosts, distribution, port)
    outcomes = [
        Outcome(
            True, "configuration", f"{job.world_size} ranks, {job.layout}, {job.engine} {job.engine_version}"
        )
    ]
    for host, reply in replies.items():
        if reply.get("ok") is False:
            outcomes.append(Outcome(False, host.name, reply["message"]))
        else:
            outcomes += _host(host, job, distribution, port, reply)
    return outcomes


def require_free_port(experiment: Experiment, job: Job, distribution: str) -> None:
    """Raise a HostError where the port that the user named is taken on the master host."""
    port = experiment.runner.master_port
    if port is None:
        return
    for host, reply in _probe(experiment, job.hosts[:1], distribution, port).items():
        if reply.get("ok") is False or not reply["port_free"]:
            reason = reply.get("message", f"port {port} is taken (experiment.runner.master_port)")
            raise HostError(
                "the job was not started:", [Problem(reason, host.name, "leave it out: a free one is found")]
            )


def _probe(
    experiment: Experiment, hosts: tuple[Host, ...], distribution: str, port: int
) -> dict[Host, Reply]:
    """Ask hosts for what a preflight compares; the port concerns the first one only."""
    return launcher.ask(
        list(hosts),
        lambda host: [
            *("probe", str(experiment.exp_dir), host.platform, distribution),
            str(port if host.rank == 0 else 0),
        ],
    )


def _host(host: Host, job: Job, distribution: str, port: int, reply: Reply) -> list[Outcome]:
    shared = platforms.find(host.platform).shares_devices
    outcomes = [
        Outcome(
            reply["flagscale"] == __version__,
            host.name,
            f"flagscale {reply['flagscale']} (here {__version__})",
        ),
        Outcome(
            reply["engine"] == job.engine_version,
            host.name,
            f"{distribution} {reply['engine'] or 'is not installed'} (wanted {job.engine_version})",
        ),
        Outcome(
            shared or reply["devices"] >= host.slots,
            host.name,
            f"{reply['devices']} {host.platform} devices for {host.slots} ranks",
        ),
        Outcome(
            reply["writable"] and reply["disk_free"] >= _MIN_FREE,
            host.name,
            f"{reply['disk_free'] / 2**30:.0f} GiB free{'' if reply['writable'] else ', not writable'}",
        ),
    ]
    if port and host.rank == 0:
        outcomes.append(
            Outcome(reply["port_free"], host.name, f"port {port} {'free' if reply['port_free'] else 'taken'}")
        )
    return outcomes
