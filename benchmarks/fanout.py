"""Compare start, query and stop on many hosts: our launcher against a plain loop of `ssh`, host by host.

Every host is an sshd on a loopback address; the job is the fake agent of the tests. Our side does what the
actions do, each with new connections like separate commands: supervisors guard the job, find each other and
begin together, and a stop returns when nothing is left. The other side does what the reference does: three
`ssh` calls per host to start (create the folder, send a script, run it in the background), one to query and
one to stop, neither of which waits for anything. A login alone is measured as well: no step can be faster.
Both sides alternate in one run; figures are medians and ranges of the rounds, the speedup is of each round.
CPU time is that of the launcher and of all "hosts" together, which share this machine's cores; that of the
engines, which both sides start, is part of it and shown apart.

    python -m benchmarks.fanout [--hosts 1 4 16 64] [--rounds 3] [--login SECONDS]

`--login` adds a delay to each login, without using the CPU: the time that a host with its own cores, or the
network to it, would add to each session. The shells do not read the `.bashrc` of this machine's user.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from flagscale.node.network import free_port
from flagscale.remote import launcher
from flagscale.remote.ssh import connect
from flagscale.remote.transport import HostAccess
from flagscale.run.env import run_tags
from flagscale.run.rundir import RunDir
from flagscale.values import Channel, Host, LaunchPlan, NodeCommand
from flagscale_testing.farm.credentials import FarmHost
from flagscale_testing.farm.loopback import LoopbackFarm, loopback_farm
from flagscale_testing.jobs.plans import AGENT, fake_plan

ROOT = Path(__file__).resolve().parents[1]
_PORTS = range(20000, 32000)
"""One is chosen at random, because other benchmarks and tests may run at the same time."""
STEPS = ("login", "start", "query", "stop")
"""`login` is the lower bound: a connection to each host that runs `true`, without FlagScale."""


@dataclass(frozen=True)
class Cost:
    """The cost of a step: seconds, CPU seconds of launcher and hosts, peak memory of the launcher."""

    seconds: float
    cpu: float
    engines: float
    """The part of `cpu` that the engines have used."""
    megabytes: float


def plan_of(
    hosts: Sequence[FarmHost], exp_dir: Path, run_id: str, *behaviours: str, stop_grace: float = 1.0
) -> LaunchPlan:
    """Return the plan of a job of the fake agent on these hosts, with a channel if there are several."""
    files = RunDir(exp_dir)
    places = [Host(rank, host.address, len(behaviours), "cpu") for rank, host in enumerate(hosts)]
    nodes = tuple(
        NodeCommand(
            host=place,
            argv=(sys.executable, "-S", str(AGENT), str(exp_dir / f"report-{place.rank}"), *behaviours),
            env=run_tags(run_id, place.rank),
            cwd=str(exp_dir),
            failure_file=str(files.failure(place)),
            stop_grace=stop_grace,
        )
        for place in places
    )
    first = hosts[0].address
    return fake_plan(
        exp_dir,
        run_id,
        nodes,
        start_timeout=120.0,
        channel=Channel(first, free_port(first, random.choice(_PORTS))) if len(hosts) > 1 else None,
        connect_timeout=60.0,
    )


@contextmanager
def quick_farm(count: int, login: float = 0.0) -> Iterator[LoopbackFarm]:
    """Make a farm whose logins are delayed."""
    with tempfile.TemporaryDirectory() as folder, loopback_farm(Path(folder) / "farm", count) as farm:
        (farm.home / ".bashrc").write_text(f"sleep {login}\n" if login else "")
        # A key with a usual name below a $HOME that is not the account's would cost an `ssh -G` per login.
        (farm.home / ".ssh/id_ed25519").rename(farm.home / ".ssh/farm_key")
        farm.config.write_text(farm.config.read_text().replace("id_ed25519", "farm_key"))
        yield farm


def ours(plan: LaunchPlan, step: str) -> None:
    """Execute a step as the actions do."""
    if step == "login":
        with ThreadPoolExecutor(len(plan.nodes)) as pool:
            list(pool.map(_log_in, plan.hosts))
    elif step == "start":
        launcher.start(plan, "", {})
    elif step == "query":
        found = launcher.status(plan)
        assert all(host.state and host.state.phase == "running" for host in found), found
    else:
        replies = launcher.stop(plan)
        assert all(reply["ok"] for reply in replies.values()), replies


def _log_in(host: Host) -> None:
    program = connect(HostAccess(host.name, sys.executable, str(ROOT), connect_timeout=60.0), "true")
    with suppress(EOFError):
        program.receive(60.0)
    program.close()


def theirs(farm: LoopbackFarm, plan: LaunchPlan, step: str) -> None:
    """Execute a step as the reference does."""
    for place, host in zip(plan.nodes, farm.hosts, strict=False):
        folder = f"{plan.exp_dir}/theirs/{place.host.rank}"
        script = f"exec {shlex.join(place.argv)}\n"
        calls = {
            "login": (("true", ""),),
            "start": (
                (f"mkdir -p {folder}", ""),
                (f"cat > {folder}/run.sh", script),
                (f"nohup bash {folder}/run.sh > {folder}/log 2>&1 < /dev/null & echo $! > {folder}/pid", ""),
            ),
            "query": ((f"ps -o pid=,stat= -p $(cat {folder}/pid)", ""),),
            "stop": ((f"kill $(cat {folder}/pid)", ""),),
        }
        for command, text in calls[step]:
            words = farm.ssh_command(host, command)
            subprocess.run(words, input=text, text=True, check=True, stdout=subprocess.DEVNULL)


def measure(farm: LoopbackFarm, work: Callable[[], None]) -> Cost:
    """Do the work in a separate process, as the farm's user, and return its cost."""
    before, engines = _cpu(farm), _cpu_of_engines(farm)
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.environ.clear()
            os.environ.update(farm.environment())
            begun = time.monotonic()
            work()
            seconds = time.monotonic() - begun
            used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
            cpu = sum(usage.ru_utime + usage.ru_stime for usage in used)
            cpu += sum(map(_cpu_of, psutil.Process().children(recursive=True)))  # connections that are open
            # Now, because sessions end with this process, and nobody may account for them then.
            cpu += _cpu(farm) - before
            figures = [seconds, cpu, _cpu_of_engines(farm) - engines, used[0].ru_maxrss / 1024]
            os.write(writer, json.dumps(figures).encode())
        except BaseException:
            traceback.print_exc()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        reply = pipe.read()
    os.waitpid(pid, 0)
    if not reply:
        raise SystemExit("the step failed")
    return Cost(*json.loads(reply))


def _cpu(farm: LoopbackFarm) -> float:
    """Return the CPU seconds of all current and former processes of the farm."""
    return sum(map(_cpu_of, [psutil.Process(farm.keeper.pid), *farm.keeper.processes()]))


def _cpu_of_engines(farm: LoopbackFarm) -> float:
    """Return the CPU seconds of the fake agents and their ranks, whose command lines name their report."""
    found = 0.0
    for process in farm.keeper.processes():
        with suppress(psutil.NoSuchProcess):
            if any("/report-" in word for word in process.cmdline()):
                found += _cpu_of(process)
    return found


def _cpu_of(process: psutil.Process) -> float:
    """Return the CPU seconds of a process and of those of its children that have ended."""
    try:
        ticks = process.cpu_times()
        # Process times come in ticks of 10 ms, too coarse for many small processes; thread times in ns.
        tasks = Path(f"/proc/{process.pid}/task").glob("*/schedstat")
        own: float = sum(int(task.read_text().split()[0]) for task in tasks) / 1e9
        return max(own, ticks.user + ticks.system) + ticks.children_user + ticks.children_system
    except (psutil.NoSuchProcess, OSError):
        return 0.0


def rounds(farm: LoopbackFarm, count: int, number: int) -> Iterator[dict[str, tuple[Cost, Cost]]]:
    """Measure every step on `count` hosts `number` times, on both sides; the side that begins alternates."""
    for attempt in range(number):
        with tempfile.TemporaryDirectory() as folder:
            plan = plan_of(farm.hosts[:count], Path(folder), f"fanout-{count}-{attempt}", "rank")
            costs: dict[str, list[Cost]] = {}
            sides: list[Callable[[str], None]] = [
                lambda step, plan=plan: ours(plan, step),  # type: ignore[misc]
                lambda step, plan=plan: theirs(farm, plan, step),  # type: ignore[misc]
            ]
            for side in sides if attempt % 2 else reversed(sides):
                for step in STEPS:
                    cost = measure(farm, lambda side=side, step=step: side(step))  # type: ignore[misc]
                    costs.setdefault(step, []).append(cost)
                while any(farm.processes(host) for host in farm.hosts[:count]):
                    time.sleep(0.1)
        order = slice(None) if attempt % 2 else slice(None, None, -1)
        yield {step: tuple(pair[order]) for step, pair in costs.items()}  # type: ignore[misc]


def _spread(values: Sequence[float], digits: int) -> str:
    """Return the median, and the range if there are several values."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main(words: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hosts", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--login", type=float, default=0.0)
    asked = parser.parse_args(words)
    print("| hosts | step | FlagScale, s | ssh loop, s | speedup, x | FlagScale, CPU s per host ", end="")
    print("| of it engines | ssh loop, CPU s per host | command, MB |")
    print("|---|---|---|---|---|---|---|---|---|")
    with quick_farm(max(asked.hosts), asked.login) as farm:
        for count in asked.hosts:
            measured = list(rounds(farm, count, asked.rounds))
            for step in STEPS:
                pairs = [costs[step] for costs in measured]
                figures = (
                    _spread([ours_.seconds for ours_, _ in pairs], 2),
                    _spread([theirs_.seconds for _, theirs_ in pairs], 2),
                    _spread([theirs_.seconds / ours_.seconds for ours_, theirs_ in pairs], 1),
                    _spread([ours_.cpu / count for ours_, _ in pairs], 3),
                    _spread([ours_.engines / count for ours_, _ in pairs], 3),
                    _spread([theirs_.cpu / count for _, theirs_ in pairs], 3),
                    f"{max(ours_.megabytes for ours_, _ in pairs):.0f}",
                )
                print(f"| {count} | {step} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
