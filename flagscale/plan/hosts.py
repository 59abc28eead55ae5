"""Select the hosts that the job runs on, in rank order, and how many ranks each of them has."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from flagscale.config.blanks import wanted_at
from flagscale.config.host_names import canonical, expand
from flagscale.config.source_map import SourceMap
from flagscale.errors import Problem, UserError, nearest
from flagscale.plan.hostfile import HostLine, read_hostfile
from flagscale.plan.runner import LocalDevices, RunnerRules, Where
from flagscale.values import Host

if TYPE_CHECKING:
    from flagscale.config.schema import Runner


def select_hosts(
    rules: RunnerRules, runner: Runner, devices: LocalDevices, source_map: SourceMap | None = None
) -> tuple[Host, ...]:
    """Return the hosts of the job, selected from those that its runner offers.

    Raises:
        UserError: the hostfile is bad, or there are fewer hosts or devices than requested.
    """
    where = (source_map or SourceMap()).where
    lines = rules.hosts(runner, devices, where)
    if devices.any_hosts and not runner.hostfile:
        lines = _imagined(lines, runner.host_range(len(lines))[1])
    source = (
        f"{os.path.relpath(runner.hostfile)} has {len(lines)}" if runner.hostfile else "there is no hostfile"
    )
    ranks = _ranks(runner)
    least, wanted = runner.host_range(len(lines))
    problems = []
    if wanted > len(lines):
        what = f"nnodes is {wanted}, but {source}"
        hint = f"list the hosts in experiment.runner.hostfile, or use nnodes: {len(lines)}"
        problems.append(Problem(what, where("experiment.runner.nnodes"), hint))
    problems += [
        Problem(
            f"`{line.name}` has {line.slots} slots, but nproc_per_node is {ranks}",
            where("experiment.runner.nproc_per_node"),
        )
        for line in lines[:wanted]
        if ranks is not None and ranks > line.slots
    ]
    if runner.standalone:
        problems += _standalone_problems(runner, wanted, where)
    kinds = {(ranks or line.slots, line.type) for line in lines[:wanted]}
    if least < wanted <= len(lines) and len(kinds) > 1:
        what = "any host may be left out, so all hosts need the same slots and type"
        hint = "set nnodes to a single number"
        problems.append(Problem(what, where("experiment.runner.nnodes"), hint))
    if problems:
        raise UserError(problems)
    return tuple(
        Host(rank=rank, name=line.name, slots=ranks or line.slots, platform=line.type or devices.platform)
        for rank, line in enumerate(lines[:wanted])
    )


def _imagined(lines: tuple[HostLine, ...], count: int) -> tuple[HostLine, ...]:
    """Return as many hosts as wanted, all like the first one."""
    return tuple(HostLine(f"host-{rank}", lines[0].slots, lines[0].type) for rank in range(count))


def _standalone_problems(runner: Runner, hosts: int, where: Where) -> Iterator[Problem]:
    if hosts > 1 and not runner.per_node_task:
        what, hint = f"`standalone` means one host, but the job has {hosts}", "remove it, or set nnodes: 1"
        yield Problem(what, where("experiment.runner.standalone"), hint)
        return
    for key in ("rdzv_endpoint", "rdzv_backend", "master_addr", "master_port"):
        if getattr(runner, key) not in (None, "c10d", "static"):
            yield Problem(
                f"`standalone` and `{key}` contradict each other", where(f"experiment.runner.{key}")
            )


def named_hosts(runner: Runner, devices: LocalDevices, where: Where) -> tuple[HostLine, ...]:
    """Return the hosts of the hostfile that `include` and `exclude` leave; without a hostfile, this host.

    Raises:
        UserError: the hostfile is bad, a host is unknown, or this host has too few devices.
    """
    if runner.hostfile:
        return _chosen(_hostfile_lines(runner.hostfile, where("experiment.runner.hostfile")), runner, where)
    for key in ("include", "exclude"):
        if getattr(runner, key):
            what = f"`{key}` selects hosts from a hostfile, but no hostfile is given"
            raise UserError([Problem(what, where(f"experiment.runner.{key}"))])
    return (HostLine("localhost", slots_here(runner, devices, where)),)


def slots_here(runner: Runner, devices: LocalDevices, where: Where) -> int:
    """Return how many ranks this host runs: `nproc_per_node`, otherwise one per device.

    Raises:
        UserError: the host has too few devices, unless the job is only planned; or none to count.
    """
    ranks, platform = _ranks(runner), devices.platform
    if ranks is None and devices.count < 1:
        what, hint = f"this host has no {platform} devices", "set experiment.runner.platform=cpu"
        if devices.only_plans:
            hint = "give experiment.runner.nproc_per_node or a hostfile to plan for other hosts"
        raise UserError([Problem(what, where("experiment.runner.platform"), hint)])
    if ranks is not None and not devices.suffice(ranks) and not devices.only_plans:
        what = f"nproc_per_node is {ranks}, but this host has {devices.count} {platform} devices"
        hint = "lower it and the parallel degrees, or set experiment.runner.platform=cpu"
        raise UserError([Problem(what, where("experiment.runner.nproc_per_node"), hint)])
    return devices.count if ranks is None else ranks


def _ranks(runner: Runner) -> int | None:
    return runner.nproc_per_node if isinstance(runner.nproc_per_node, int) else None


def _hostfile_lines(path: str, where: str) -> tuple[HostLine, ...]:
    if not os.path.exists(path):
        raise UserError([Problem(f"hostfile not found: {path}", where, wanted_at("hostfile"))])
    return read_hostfile(Path(path))


def _chosen(lines: tuple[HostLine, ...], runner: Runner, where: Where) -> tuple[HostLine, ...]:
    """Return the hosts that `include` and `exclude` leave, in the order of the hostfile."""
    known = {canonical(line.name): line.name for line in lines}
    problems: list[Problem] = []
    chosen: dict[str, set[str]] = {"include": set(), "exclude": set()}
    for key, names in chosen.items():
        for given in getattr(runner, key):
            try:
                each = expand(given)
            except ValueError as error:
                problems.append(Problem(str(error), where(f"experiment.runner.{key}")))
                continue
            names |= set(map(canonical, each))
            problems += [
                Problem(
                    f"`{name}` is not in the hostfile",
                    where(f"experiment.runner.{key}"),
                    nearest(name, known.values()),
                )
                for name in each
                if canonical(name) not in known
            ]
    include, exclude = chosen["include"] or set(known), chosen["exclude"]
    kept = tuple(line for line in lines if canonical(line.name) in include - exclude)
    if not kept and not problems:
        what = "`include` and `exclude` leave no hosts of the hostfile"
        problems.append(Problem(what, where("experiment.runner.exclude")))
    if problems:
        raise UserError(problems)
    return kept
