"""Check the hosts before a job is started on them: `check` does all checks, a start only some."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from secrets import token_hex
from urllib.parse import urlsplit

from flagscale import platforms
from flagscale.checks.blend import named_files
from flagscale.checks.facts import facts
from flagscale.config.schema import Experiment
from flagscale.formats import count
from flagscale.remote.hosts import ask_all, reach_for_start, sees_our_files
from flagscale.remote.places import places_of, repeated
from flagscale.remote.report import host_error
from flagscale.remote.transport import transport_of_start
from flagscale.run.state import Reply
from flagscale.values import DEFAULT_PORT, Host, Job, LaunchPlan, Rendezvous, Service

_MIN_FREE = 5 * 2**30
"""Bytes below which a checkpoint of even a small model may not fit."""
_MAX_SKEW = 2.0
_SCAN = 3600.0
"""Seconds that a host may take to read data whose token ids are not known yet."""
_LISTEN = 120.0
"""Seconds that a host listens, so that even the slowest one can connect."""


@dataclass(frozen=True)
class CheckResult:
    """One check on one host (or of the configuration as a whole)."""

    ok: bool
    host: str
    text: str
    is_advice: bool = False
    """Whether a start continues if the check fails."""


@dataclass(frozen=True)
class Way:
    """Another way to ask the hosts of a plan than by sessions on them."""

    addresses: Mapping[int, str]
    """The address of each host, by rank, at which the others reach it."""
    ask: Callable[[Mapping[Host, list[str]], float], Mapping[Host, Reply]]
    """Perform one node command per host within so many seconds; return the replies."""
    port: int = DEFAULT_PORT
    """The port of the rendezvous, unless it is configured or in use."""


@dataclass(frozen=True)
class Survey:
    """The results of all hosts, and their rendezvous (None for one host, or if the first host failed)."""

    results: tuple[CheckResult, ...]
    rendezvous: Rendezvous | None


def preflight(
    experiment: Experiment, job: Job, plan: LaunchPlan, distributions: tuple[str, ...]
) -> list[CheckResult]:
    """Ask every host of the job and return all results, good and bad."""
    size = sum(map(len, job.services.values()))
    what = count(size, "service") if size else count(job.world_size, "rank")
    title = f"{what}, {job.layout}, {job.engine} {job.engine_version}"
    survey = ask_hosts(experiment, job, plan, distributions, is_check=True)
    results = [CheckResult(True, "configuration", title), *survey.results]
    if survey.rendezvous and all(result.ok or result.is_advice for result in results):
        results += _reachability(plan, survey.rendezvous)
    return results


def require_ready(
    experiment: Experiment,
    job: Job,
    plan: LaunchPlan,
    distributions: tuple[str, ...],
    way: Way | None = None,
) -> Rendezvous | None:
    """Return where the hosts meet; `way` as of `ask_hosts`.

    Raises:
        HostError: hosts are not ready; each of them is named.
    """
    survey = ask_hosts(experiment, job, plan, distributions, way=way)
    bad = [result for result in survey.results if not result.ok and not result.is_advice]
    if bad:
        transport_of_start.cache_clear()
        hosts = {host.name: host for host in plan.hosts}
        raise host_error("the job was not started:", [(hosts[one.host], one.text) for one in bad])
    return survey.rendezvous


def ask_hosts(
    experiment: Experiment,
    job: Job,
    plan: LaunchPlan,
    distributions: tuple[str, ...],
    *,
    is_check: bool = False,
    way: Way | None = None,
) -> Survey:
    """Ask all hosts at once for the facts that a start needs; `is_check`: also for what takes seconds.

    Args:
        way: how to ask them; default: by a session on each host.
    """
    first = plan.hosts[0]
    runner = experiment.runner
    several = plan.channel is not None
    places = places_of(job.hosts, plan.ssh_port) if len(plan.nodes) > 1 and way is None else {}
    addresses = {host.rank: place.address for host, place in places.items()}
    addresses = dict(way.addresses if way else addresses) if several else {}
    if several and runner.master_addr:
        addresses[first.rank] = runner.master_addr
    address = addresses.get(first.rank, "")
    named = runner.master_port
    usual = way.port if way else DEFAULT_PORT
    ports = [named or usual, usual + 1 if named != usual + 1 else usual + 2]
    if not several:
        # On one host, only a port that the user configured can be in use, and only the first host uses it.
        named = named if first.rank == 0 else None
        address, ports = ("127.0.0.1", [named]) if named else ("", [])

    def question(host: Host, mark: str) -> list[str]:
        there = plan.on_host(host.name)
        asked = {
            "directory": there.exp_dir,
            "platform": host.platform,
            "distributions": distributions,
            "packages": job.packages,
            "cwd": there.node(host.rank).cwd,
            "inputs": plan.renamed_on(host.name, dict(job.inputs)),
            "listens": [place for one in there.node(host.rank).services for place in _listens(one)],
            "is_check": is_check,
            "mark": mark if sees_our_files(plan, host) else "",
            "address": address if host == first else "",
            "ports": ports,
        }
        return ["probe", json.dumps(asked)]

    with _mark(Path(plan.exp_dir), len(plan.nodes)) as mark:
        asked = time.time()
        seconds = _SCAN if _may_scan(job) else 0.0
        if way:
            replies = dict(way.ask({host: question(host, mark) for host in plan.hosts}, seconds))
        else:
            reach = None if is_check else partial(reach_for_start, plan)
            replies = ask_all(plan, lambda host: [question(host, mark)], seconds, reach=reach)
        answered = time.time()
    results = [
        CheckResult(False, host.name, text, is_advice=not is_certain)
        for host, text, is_certain in repeated(places)
    ]
    for host, reply in replies.items():
        if reply.get("ok") is False:
            results.append(CheckResult(False, host.name, reply["message"]))
        else:
            results += _host(host, job, distributions, reply)
            skew = max(asked - reply["time"], reply["time"] - answered)
            if skew > _MAX_SKEW:
                results.append(
                    CheckResult(False, host.name, f"its clock is {skew:.0f} s off", is_advice=True)
                )
    rendezvous = None
    reported = replies[first]
    if named and named in reported.get("taken", ()):
        text = f"port {named} is in use (experiment.runner.master_port); remove the key to use a free port"
        results.append(CheckResult(False, first.name, text))
    elif several and "ports" in reported:
        port, channel_port = reported["ports"]
        rendezvous = Rendezvous(address, port, channel_port, addresses)
    if "no_address" in reported:
        text = f"{reported['no_address']}; set experiment.runner.master_addr to an address of this host"
        results.append(CheckResult(False, first.name, text))
    return Survey(tuple(results), rendezvous)


def _may_scan(job: Job) -> bool:
    """Return whether a host may have to read data for its ids; what this host has read does not count."""
    return any(facts(prefix) is None for _, prefix in named_files(job.inputs))


def _listens(service: Service) -> Iterator[tuple[str, int]]:
    """Yield every (address, port) that a service will listen on."""
    if service.url:
        place = urlsplit(service.url)
        yield place.hostname or "", place.port or 0
    for port in service.ports:
        yield "0.0.0.0", port


@contextmanager
def _mark(exp_dir: Path, hosts: int) -> Iterator[str]:
    """Create a temporary file by which hosts show that they share this file system; yield its path, or ""."""
    existing = next(path for path in (exp_dir, *exp_dir.parents) if os.path.isdir(path))
    path = existing / f".flagscale-{token_hex(8)}"
    try:
        if hosts > 1:
            path.touch()
    except OSError:
        hosts = 1  # reported as not writable, or by the start
    try:
        yield str(path) if hosts > 1 else ""
    finally:
        if hosts > 1:
            path.unlink(missing_ok=True)


def _host(host: Host, job: Job, distributions: tuple[str, ...], reply: Reply) -> Iterator[CheckResult]:
    shared = platforms.find(host.platform).shares_devices
    free, where = reply["disk_free"] / 2**30, reply["directory"]
    room = f"{free:.0f} GiB free in {where}{'' if reply['writable'] else ', not writable'}"
    is_right = reply["engine"] == job.engine_version
    engine = f"{distributions[0]} {reply['engine'] or 'is not installed'} (required: {job.engine_version})"
    hint = "" if is_right or not job.install else f"; install it there: {job.install}"
    yield CheckResult(is_right, host.name, engine + hint)
    for missing in reply["missing"]:
        name, _, _ = missing.partition("|")
        text = f"the package `{name}` is not installed; install it there: pip install {name}"
        yield CheckResult(False, host.name, text)
    yield CheckResult(
        shared or reply["devices"] >= host.slots,
        host.name,
        f"{reply['devices']} {host.platform} devices for {host.slots} {'slots' if job.services else 'ranks'}",
    )
    if reply["busy"]:
        text = f"its {host.platform} devices are in use by {count(reply['busy'], 'other process')}"
        yield CheckResult(False, host.name, text, is_advice=True)
    if reply["writable"] and reply["disk_free"] < _MIN_FREE:
        yield CheckResult(False, host.name, f"only {room}", is_advice=True)
    else:
        yield CheckResult(reply["writable"], host.name, room)
    if not reply["sees_mark"]:
        text = "it does not see the run directory's file system; set experiment.runner.no_shared_fs: true"
        yield CheckResult(False, host.name, text)
    for what in reply["wrong_inputs"]:
        yield CheckResult(False, host.name, what)
    for what in reply["odd_tokenizers"]:
        yield CheckResult(False, host.name, what, is_advice=True)
    for port in reply["taken_ports"]:
        yield CheckResult(False, host.name, f"port {port} is in use: another process listens on it")


def _reachability(plan: LaunchPlan, rendezvous: Rendezvous) -> Iterator[CheckResult]:
    """Connect from every host to every other one, on the addresses that the ranks will use.

    On the first host this uses the ports at which all hosts will meet, elsewhere any free port.
    """
    addresses = {host: rendezvous.addresses[host.rank] for host in plan.hosts}

    def listen(host: Host) -> list[str]:
        ports = [rendezvous.port, rendezvous.channel_port] if host == plan.hosts[0] else [0]
        return ["listen", addresses[host], json.dumps(ports), str(_LISTEN)]

    listening = ask_all(plan, lambda host: [listen(host)])
    for host, reply in listening.items():
        if "ports" not in reply:
            yield CheckResult(False, host.name, f"cannot listen on {addresses[host]}: {reply['message']}")
    places = [
        (host, addresses[host], port) for host, reply in listening.items() for port in reply.get("ports", ())
    ]
    words = json.dumps([[address, port] for _, address, port in places])
    for host, reply in ask_all(plan, lambda host: [["dial", words]]).items():
        reasons = reply.get("reasons", [reply.get("message", "")] * len(places))
        bad = [(to, port, why) for (to, _, port), why in zip(places, reasons, strict=True) if why]
        for to, port, why in bad:
            yield CheckResult(
                False, host.name, f"cannot reach {to.name} ({addresses[to]} port {port}): {why}"
            )
        if not bad:
            yield CheckResult(True, host.name, f"reaches all {len({to for to, *_ in places})} hosts")
