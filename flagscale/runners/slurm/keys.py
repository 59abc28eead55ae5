"""`experiment.runner.slurm`: what Slurm is asked for, checked before it is asked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from flagscale import platforms
from flagscale.config.schema import Runner
from flagscale.errors import Problem, UserError, closest
from flagscale.plan.hostfile import HostLine
from flagscale.plan.runner import LocalDevices, Where
from flagscale.runners.slurm.options import OPTIONS, SET_BY_FLAGSCALE, Kind, declared

_PATH = "experiment.runner.slurm"
_OF_SLURM = ("requeue", "groups")
_OF_GROUP = ("nnodes", "nproc_per_node", "type")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")


def option(key: str) -> str:
    """Return the option that a key stands for."""
    return key.replace("_", "-")


def problems(runner: Runner, where: Where) -> Iterator[Problem]:
    """Yield every mistake in the keys of `experiment.runner.slurm`."""
    job = runner.slurm
    yield from _option_problems(job.options(), _PATH, _OF_SLURM, where)
    for number, group in enumerate(job.groups):
        yield from _option_problems(group.options(), f"{_PATH}.groups.{number}", _OF_GROUP, where)
    given = job.options().get("signal", "")
    if job.requeue and given and not re.fullmatch(r"R?B:(SIG)?(USR1|10)(@\d+)?", given):
        what = f"`signal: {given}` would not reach the job's script, which saves and requeues the job"
        yield Problem(what, where(f"{_PATH}.signal"), "write `signal: B:USR1@SECONDS`, or remove the key")
    total = sum(group.nnodes for group in job.groups)
    if total and runner.nnodes is not None and runner.nnodes != total:
        what = f"nnodes is {runner.nnodes}, but the groups of {_PATH}.groups have {total} hosts"
        yield Problem(what, where("experiment.runner.nnodes"), "remove it")


def _option_problems(
    given: Mapping[str, str], path: str, ours: Iterable[str], where: Where
) -> Iterator[Problem]:
    known: Mapping[str, Kind] = OPTIONS
    if any(option(key) not in OPTIONS and option(key) not in SET_BY_FLAGSCALE for key in given):
        known = {**declared(), **OPTIONS}  # this sbatch may be newer than the record
    for key, value in given.items():
        name, place = option(key), where(f"{path}.{key}")
        if name in SET_BY_FLAGSCALE:
            yield Problem(f"`{key}` cannot be given: {SET_BY_FLAGSCALE[name]}", place, "remove the key")
        elif name not in known:
            near = closest(name, [*known, *SET_BY_FLAGSCALE, *map(option, ours)])
            hint = f"did you mean `{near.replace('-', '_')}`?" if near else "see `man sbatch`"
            if key in Runner.model_fields:
                hint = f"it is a key of FlagScale: experiment.runner.{key}"
            yield Problem(f"sbatch has no option `--{name}`", place, hint)
        elif reason := _value_violation(value, known[name]):
            yield Problem(f"`{key}`: {reason}", place)


def _value_violation(value: str, kind: Kind) -> str:
    """Return why an option cannot have a value; "" if it can."""
    is_switch = value.lower() in (*_TRUE, *_FALSE)
    if not value.isprintable():
        return "a value is one line without control characters"
    if kind == "switch" and not is_switch:
        return f"expected true or false, not `{value}`"
    if kind == "value" and (is_switch or not value.strip()):
        return f"a value is required, not `{value}`"
    return ""


def words(given: Mapping[str, str]) -> list[str]:
    """Return the options as words of a command line; a switch that is false is left out."""
    found = []
    for key, value in given.items():
        if OPTIONS.get(option(key)) != "value" and value.lower() in (*_TRUE, *_FALSE):
            found += [f"--{option(key)}"] if value.lower() in _TRUE else []
        else:
            found.append(f"--{option(key)}={value}")
    return found


def gpus_per_host(given: Mapping[str, str]) -> int | None:
    """Return how many GPUs the options ask for on each host; None if they do not say."""
    if counts := given.get("gpus_per_node", ""):
        found = [_count(one) for one in counts.split(",")]
    else:
        kinds = re.findall(r"(?:^|,)(?:gres[:/])?gpu\b([^,]*)", given.get("gres", ""))
        found = [_count(kind.lstrip(":=")) for kind in kinds]
    return sum(found) or None


def _count(text: str) -> int:
    """Return the number in `8`, `a100:8`, `8(S:0-1)`; 1 in `a100` and in an empty text."""
    last = re.sub(r"\(.*", "", text).rpartition(":")[2]
    return int(last) if last.isdigit() else 1


def checked(runner: Runner, where: Where) -> Runner:
    """Return the keys of a job that is to be submitted, with the chip of its hosts, which this host may lack.

    Raises:
        UserError: keys are wrong, or the chip is not known.
    """
    found = list(problems(runner, where))
    if runner.platform == "auto":
        chip = _chip(runner)
        if chip is None:
            names = ", ".join(sorted(platforms.names()))
            what = "`platform: auto` is the chip of this host, but Slurm chooses the hosts"
            hint = f"name the chip of its hosts ({names}), or ask for GPUs (`{_PATH}.gres: gpu:8`)"
            found.append(Problem(what, where("experiment.runner.platform"), hint))
        else:
            runner = runner.model_copy(update={"platform": chip})
    if found:
        raise UserError(found)
    return runner


def _chip(runner: Runner) -> str | None:
    """Return the chip of the GPUs that are asked for: the only one that is installed; None if unclear."""
    asked = [runner.slurm.options(), *(group.options() for group in runner.slurm.groups)]
    if not any(map(gpus_per_host, asked)) and not any(one.get("gpus") for one in asked):
        return None
    return gpu_chip()


def gpu_chip() -> str | None:
    """Return the chip of GPUs: the only one that is installed; None if there are several."""
    others = [name for name in platforms.names() if not platforms.find(name).is_host_processor]
    return others[0] if len(others) == 1 else None


def planned_hosts(runner: Runner, devices: LocalDevices, where: Where) -> tuple[HostLine, ...]:
    """Return placeholders of the hosts that Slurm will choose, in rank order.

    Raises:
        UserError: it is not known how many ranks a host has, or a host has more ranks than GPUs.
    """
    groups = runner.slurm.groups
    if not groups:
        slots = _slots(runner.nproc_per_node, runner.slurm.options(), devices, "", where)
        return tuple(HostLine(f"host-{rank}", slots) for rank in range(runner.host_range(1)[1]))
    lines: list[HostLine] = []
    for number, group in enumerate(groups):
        path = f"slurm.groups.{number}."
        own = group.nproc_per_node if group.nproc_per_node != "auto" else runner.nproc_per_node
        slots = _slots(own, {**runner.slurm.options(), **group.options()}, devices, path, where)
        lines += [
            HostLine(f"host-{len(lines) + rank}", slots, group.type or "") for rank in range(group.nnodes)
        ]
    return tuple(lines)


def _slots(
    ranks: int | str, options: Mapping[str, str], devices: LocalDevices, path: str, where: Where
) -> int:
    gpus = gpus_per_host(options)
    place = where(f"experiment.runner.{path}nproc_per_node")
    if isinstance(ranks, int):
        if gpus is not None and ranks > gpus and not devices.are_shared:
            what = f"nproc_per_node is {ranks}, but only {gpus} GPUs are asked for on each host"
            hint = f"ask for gres: gpu:{ranks}, or use nproc_per_node: {gpus}"
            raise UserError([Problem(what, place, hint)])
        return ranks
    if gpus is None and not devices.are_shared:
        hint = f"set it, or ask for GPUs on each host ({_PATH}.gres: gpu:8, or gpus_per_node: 8)"
        raise UserError([Problem("it is not known how many ranks each host has", place, hint)])
    return gpus or 1
