"""Check a job before it is submitted: Slurm takes jobs that can never begin, and lets them wait for ever."""

from __future__ import annotations

import getpass
import grp
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from flagscale.config.host_names import expand
from flagscale.config.schema import SlurmJob
from flagscale.errors import HostError, Problem, nearest
from flagscale.formats import count, duration
from flagscale.remote.hosts import longest_grace
from flagscale.remote.preflight import CheckResult
from flagscale.runners.slurm.commands import SlurmError, call
from flagscale.runners.slurm.declared import (
    Declared,
    DeclaredHost,
    Partition,
    ask,
    limit_seconds,
    megabytes,
)
from flagscale.runners.slurm.keys import gpus_per_host
from flagscale.values import LaunchPlan

if TYPE_CHECKING:
    from flagscale.plan.prepare import Prepared

type Wish = Callable[[DeclaredHost], bool]
_SLURM = "Slurm"
_HERE = "here"
_FEATURES = re.compile(r"[\w.+-]+(?:[&|][\w.+-]+)*")
"""The constraints that are understood here: names with `&` or `|`."""


def check(prepared: Prepared) -> list[CheckResult]:
    """Return the result of every check of a job that is to be submitted."""
    plan = prepared.plan
    results = [folder_result(Path(plan.exp_dir))]
    try:
        known = ask()
    except SlurmError as error:
        return [*results, CheckResult(False, _SLURM, str(error))]
    version = known.settings.get("SLURM_VERSION", "of unknown version")
    name = known.settings.get("ClusterName", "")
    results.append(CheckResult(True, _SLURM, f"{version}, cluster {name}: its controller answers"))
    return [*results, *plan_results(plan, known, own_groups()), *_account_results(plan, known)]


def require_possible(prepared: Prepared) -> LaunchPlan:
    """Return the plan to submit. Raises HostError with everything that would keep its job from beginning."""
    bad = [one for one in check(prepared) if not (one.ok or one.is_advice)]
    if bad:
        raise HostError("the job was not submitted:", [Problem(one.text, one.host) for one in bad])
    return prepared.plan


def folder_result(exp_dir: Path) -> CheckResult:
    """Return whether the run directory can be made: without it, Slurm fails the job without a word."""
    existing = next(path for path in (exp_dir, *exp_dir.parents) if path.exists())
    if not existing.is_dir():
        return CheckResult(False, _HERE, f"{existing} is not a folder, so {exp_dir} cannot be made")
    if not os.access(existing, os.W_OK | os.X_OK):
        return CheckResult(False, _HERE, f"{existing} is not writable, so the job could not write there")
    return CheckResult(True, _HERE, f"{exp_dir} is writable; the hosts of the job must see it too")


def own_groups() -> tuple[str, ...] | None:
    """Return the names of this user's groups; None for root, whom Slurm allows everything."""
    if os.getuid() == 0:
        return None
    names = []
    for number in {os.getegid(), *os.getgroups()}:
        try:
            names.append(grp.getgrgid(number).gr_name)
        except KeyError:
            names.append(str(number))
    return tuple(names)


def plan_results(plan: LaunchPlan, known: Declared, groups: tuple[str, ...] | None) -> Iterator[CheckResult]:
    """Yield the results of comparing a job with what Slurm declares.

    `groups`: those of the user; None: they do not matter.
    """
    job = SlurmJob.model_validate(plan.slurm)
    given = job.options()
    parts = [(group.nnodes, {**given, **group.options()}) for group in job.groups]
    for hosts, options in parts or [(len(plan.nodes), given)]:
        yield from _request_results(hosts, options, known, groups)
    grace, wait = longest_grace(plan), known.kill_wait
    if wait is not None and wait < grace:
        text = (
            f"Slurm kills a cancelled job after {wait:g} s (KillWait), but its ranks may take {grace:g} s "
            "(experiment.runner.stop_grace): use action=stop rather than scancel"
        )
        yield CheckResult(False, _SLURM, text, is_advice=True)


def _request_results(
    hosts: int, options: Mapping[str, str], known: Declared, groups: tuple[str, ...] | None
) -> Iterator[CheckResult]:
    """Yield the results for equal hosts; with several partitions, one of them must do."""
    by_name = {partition.name: partition for partition in known.partitions}
    asked = [name for name in options.get("partition", "").split(",") if name]
    default = next((partition.name for partition in known.partitions if partition.is_default), None)
    names = asked or ([default] if default else [])
    if not names:
        text = f"Slurm has no default partition; set experiment.runner.slurm.partition ({', '.join(by_name)})"
        yield CheckResult(False, _SLURM, text)
        return
    for name in names:
        if name not in by_name:
            yield CheckResult(False, _SLURM, f"there is no partition `{name}`; {nearest(name, by_name)}")
    reports = {
        name: [
            *_partition_violations(by_name[name], hosts, options, groups),
            *_host_violations(by_name[name], hosts, options, known),
        ]
        for name in names
        if name in by_name
    }
    if not reports:
        return
    name, violations = min(reports.items(), key=lambda item: len(item[1]))
    for text in violations:
        yield CheckResult(False, _SLURM, f"partition {name}: {text}")
    if not violations:
        yield from _room_results(by_name[name], hosts, options, known)


def _partition_violations(
    partition: Partition, hosts: int, options: Mapping[str, str], groups: tuple[str, ...] | None
) -> Iterator[str]:
    """Yield why a partition would let the job wait for ever."""
    if partition.state != "UP":
        yield f"it is {partition.state}, so no job begins there"
    asked, limit = limit_seconds(options.get("time", "")), partition.max_time
    if asked is not None and limit is not None and asked > limit:
        yield f"time: {options['time']} is {duration(asked)}, but its limit is {duration(limit)}"
    if partition.max_nodes is not None and hosts > partition.max_nodes:
        yield f"a job may have {count(partition.max_nodes, 'host')} at most, and this one needs {hosts}"
    if hosts < partition.min_nodes:
        yield f"a job must have {count(partition.min_nodes, 'host')} at least, and this one has {hosts}"
    account = options.get("account", "")
    if account and partition.accounts and account not in partition.accounts:
        yield f"account `{account}` may not use it; {nearest(account, partition.accounts)}"
    if account in partition.denied_accounts:
        yield f"account `{account}` may not use it"
    if groups is not None and partition.groups and not {*groups} & {*partition.groups}:
        yield f"only members of the groups {', '.join(partition.groups)} may use it"


def _host_violations(
    partition: Partition, hosts: int, options: Mapping[str, str], known: Declared
) -> Iterator[str]:
    """Yield why a partition has not enough hosts of the kind that the job asks for."""
    there = [host for host in known.hosts if host.partition == partition.name]
    if hosts > len(there):
        yield f"it has {count(len(there), 'host')}, and the job needs {hosts}"
        return
    fitting: Sequence[DeclaredHost] = there
    for what, fits in _wishes(options):
        fitting = [host for host in fitting if fits(host)]
        if len(fitting) < hosts:
            yield f"only {len(fitting)} of its {len(there)} hosts {what}, and the job needs {hosts}"
            return


def _names(text: str) -> set[str]:
    """Return the hosts in a list; none if it is not one (sbatch also takes the path of a file)."""
    try:
        return {*expand(text)} if text else set()
    except ValueError:
        return set()


def _wishes(options: Mapping[str, str]) -> Iterator[tuple[str, Wish]]:
    """Yield what the job asks of each host: words for it, and a function that says whether a host has it."""
    if left_out := _names(options.get("exclude", "")):
        yield "remain without those in `exclude`", lambda host: host.name not in left_out
    constraint = options.get("constraint", "")
    if _FEATURES.fullmatch(constraint) and not ("&" in constraint and "|" in constraint):
        names = {*re.split("[&|]", constraint)}
        needs_all = "|" not in constraint
        yield (
            f"also have `constraint: {constraint}`",
            lambda host: names <= {*host.features} if needs_all else bool(names & {*host.features}),
        )
    if gpus := gpus_per_host(options):
        yield f"also have {count(gpus, 'GPU')}", lambda host: host.gpus >= gpus
    memory = megabytes(options.get("mem", ""))
    if memory:
        yield f"also have {options['mem']} of memory", lambda host: host.memory >= memory
    cores = options.get("cpus_per_task", "")
    if cores.isdigit():
        yield f"also have {count(int(cores), 'CPU')}", lambda host: host.cpus >= int(cores)


def _room_results(
    partition: Partition, hosts: int, options: Mapping[str, str], known: Declared
) -> Iterator[CheckResult]:
    """Yield whether enough of the fitting hosts work now; otherwise the job has to wait for repairs."""
    fitting = [host for host in known.hosts if host.partition == partition.name]
    for _, fits in _wishes(options):
        fitting = [host for host in fitting if fits(host)]
    usable = [host for host in fitting if host.is_usable]
    text = f"partition {partition.name}: {len(usable)} of {count(len(fitting), 'fitting host')} can be used"
    if len(usable) < hosts:
        text += f", and the job needs {hosts}: it waits until others are repaired"
    yield CheckResult(len(usable) >= hosts, _SLURM, text, is_advice=True)


def _account_results(plan: LaunchPlan, known: Declared) -> Iterator[CheckResult]:
    """Yield whether the user has the account, if Slurm keeps accounts."""
    account = SlurmJob.model_validate(plan.slurm).options().get("account", "")
    if not account:
        return
    if not known.has_accounting:
        text = f"account {account}: this Slurm keeps no accounts, so it cannot be checked"
        yield CheckResult(True, _SLURM, text)
        return
    try:
        who = f"user={getpass.getuser()}"
        printed = call("sacctmgr", "--noheader", "--parsable2", "show", "assoc", who, "format=account")
    except SlurmError as error:
        yield CheckResult(False, _SLURM, f"account {account}: {error}", is_advice=True)
        return
    own = {line.strip() for line in printed.splitlines() if line.strip()}
    if own:
        text = (
            f"account {account}"
            if account in own
            else f"you have no account `{account}`; {nearest(account, own)}"
        )
        yield CheckResult(account in own, _SLURM, text)
