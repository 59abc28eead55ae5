"""Start a job on 1 000 hosts that one process plays: time, memory and report of failures, against 64 hosts.

The launching side is the real one in a process of its own: `launcher.start` over the user's own `ssh`, with
real TCP connections, key exchanges and logins. The hosts take drawn times, some five times as long; where
hosts fail, they do so in all ways equally often (see `flagscale_testing.farm.parts`). The launcher, its
`ssh` processes and the process that plays the hosts share this machine's cores.

Every start is checked, and counted as wrong otherwise: the one report of a failed start names each host that
failed once, with its own reason, and every host that had started was stopped again.

    python -m benchmarks.thousand [--hosts 64 1000] [--cases none all start interrupt] [--base PATH]

`--base` is a clone of another version of FlagScale; both sides alternate. `--faults 40`: the number of hosts
that fail in the case `all`; in `start`, a tenth of them. In the case `interrupt`, a start is interrupted
(Ctrl-C) after `--interrupt 8` seconds, and its time counts from then. `--slow` multiplies the drawn times.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from flagscale_testing.farm.parts import AT_START, FAULTS, Fault, draw_parts
from flagscale_testing.farm.played import PlayedFarm, played_farm

ROOT = Path(__file__).resolve().parents[1]
CASES = ["none", "all", "start", "interrupt"]
_MIB = 2.0**20
_SAMPLE = 0.5


@dataclass(frozen=True)
class Cost:
    """The cost of one start, until it has succeeded or everything is stopped again."""

    seconds: float
    cpu: float
    """CPU seconds of the launcher and its `ssh` processes."""
    hosts_cpu: float
    """CPU seconds of the process that plays the hosts."""
    launcher: float
    """Peak memory of the launching process, MiB."""
    total: float
    """The same with its `ssh` processes, MiB: the sum of their proportional set sizes, sampled."""
    threads: int
    files: int
    """Open files of the launching process, sampled; and its `ssh` processes."""
    processes: int
    logins: int


class Peak(Thread):
    """Samples what a launcher and its `ssh` processes hold at most."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self.is_over = Event()
        self.memory, self.files, self.processes = 0.0, 0, 0

    def run(self) -> None:
        while not self.is_over.wait(_SAMPLE):
            pids = _tree(self._pid)
            # Reading the memory of a thousand processes takes a while, so only when there are more of them.
            if len(pids) > 1.05 * self.processes:
                self.memory = max(self.memory, sum(_memory(pid, "smaps_rollup", "Pss") for pid in pids))
            self.processes = max(self.processes, len(pids))
            with suppress(OSError):
                self.files = max(self.files, len(os.listdir(f"/proc/{self._pid}/fd")))


def start(farm: PlayedFarm, tree: Path, run: Path, interrupt: float = 0.0) -> tuple[Cost, str]:
    """Start a job with the FlagScale of a clone; return the cost and what the launcher reported.

    `interrupt`: seconds after which it gets Ctrl-C; the cost then counts from that moment.
    """
    spec = farm.directory / "spec.json"
    addresses = [part.address for part in farm.parts]
    spec.write_text(json.dumps({"addresses": addresses, "exp_dir": str(run), "run_id": run.name}))
    words = [sys.executable, "-P", str(ROOT / "benchmarks/one_start.py"), str(spec)]
    environment = {**farm.environment(), "PYTHONPATH": str(tree)}
    pipe = subprocess.PIPE
    before, logins = _cpu(farm.player), farm.count("login").total()
    with subprocess.Popen(words, env=environment, stdin=pipe, stdout=pipe, text=True) as launcher:
        assert launcher.stdin
        assert launcher.stdout
        try:
            launcher.stdout.readline()
            launcher.stdin.write("\n")
            launcher.stdin.flush()
            begun = time.monotonic()
            peak = Peak(launcher.pid)
            peak.start()
            if interrupt:
                time.sleep(interrupt)
                launcher.send_signal(signal.SIGINT)
                begun = time.monotonic()
            reported = json.loads(launcher.stdout.readline())
            seconds = time.monotonic() - begun
            peak.is_over.set()
            peak.join()
            everyone = _tree(launcher.pid)
            cost = Cost(
                seconds=seconds,
                cpu=sum(map(_cpu, everyone)),
                hosts_cpu=_cpu(farm.player) - before,
                launcher=_memory(launcher.pid, "status", "VmHWM"),
                total=peak.memory,
                threads=reported["threads"],
                files=peak.files,
                processes=peak.processes - 1,
                logins=farm.count("login").total() - logins,
            )
            launcher.stdin.close()
            launcher.wait()
        finally:
            launcher.kill()
    return cost, reported["outcome"]


def _tree(pid: int) -> list[int]:
    """Return the launcher and its children."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    found: list[int] = [pid]
    for task in tasks:
        with suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def _cpu(pid: int) -> float:
    """Return the CPU seconds of a process and of its children that have ended; 0 if it has ended."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        user, system, *ended = (int(field) / os.sysconf("SC_CLK_TCK") for field in fields[11:15])
        tasks = Path(f"/proc/{pid}/task").glob("*/schedstat")
        # Clock ticks are too coarse for many small processes, but threads that have ended count only there.
        own = max(user + system, sum(int(task.read_text().split()[0]) for task in tasks) / 1e9)
        return own + sum(ended)
    return 0.0


def _memory(pid: int, file: str, name: str) -> float:
    with suppress(OSError):
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{pid}/{file}").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 / _MIB if found else 0.0
    return 0.0


def mistakes(farm: PlayedFarm, report: str, is_interrupted: bool) -> list[str]:
    """Return what is wrong with a start: with its report, and with what was left running."""
    failing = any(part.fault for part in farm.parts)
    wrong: list[str] = []
    if is_interrupted:
        wrong += [] if report == "interrupted" else [f"not interrupted: {report}"]
    elif failing:
        wrong += farm.mistakes_in(report)
    elif report:
        wrong.append(report)
    if failing or is_interrupted:
        wrong += [f"{host} is still running" for host in farm.left_running()]
    return wrong


@dataclass(frozen=True)
class Case:
    """What happens to a start: how many hosts fail, in which ways, or when it is interrupted."""

    name: str
    faults: int = 0
    kinds: Sequence[Fault] = FAULTS
    interrupt: float = 0.0


def _text(values: Sequence[float], digits: int = 1) -> str:
    """Return the median with its range."""
    low, high = min(values), max(values)
    span = f" ({low:.{digits}f}-{high:.{digits}f})" if len(values) > 1 else ""
    return f"{statistics.median(values):.{digits}f}{span}"


def main(words: Sequence[str]) -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hosts", type=int, nargs="+", default=[64, 1000])
    parser.add_argument("--faults", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--interrupt", type=float, default=8.0)
    parser.add_argument("--slow", type=float, default=1.0)
    parser.add_argument("--base", type=Path)
    asked = parser.parse_args(words)
    trees = {"this version": ROOT, **({"base": asked.base.resolve()} if asked.base else {})}
    known = {
        "none": Case("none"),
        "all": Case(f"{asked.faults} in all ways", asked.faults),
        "start": Case(f"{asked.faults // 10} in the start", asked.faults // 10, AT_START),
        "interrupt": Case(f"Ctrl-C after {asked.interrupt:g} s", interrupt=asked.interrupt),
    }
    cases = [known[name] for name in asked.cases]
    print("| failing | hosts | side | s | CPU s | CPU s per host | hosts' CPU s ", end="")
    print("| launcher, MiB | with ssh, MiB | threads | files | processes | logins | wrong |")
    print("|" + "---|" * 14)
    medians: dict[tuple[str, str], dict[int, float]] = {}
    bad: Counter[tuple[str, str, int]] = Counter()
    for case, hosts in itertools.product(cases, asked.hosts):
        costs: dict[str, list[Cost]] = {name: [] for name in trees}
        for attempt in range(asked.rounds):
            for name, tree in (reversed if attempt % 2 else list)([*trees.items()]):
                parts = draw_parts(hosts, min(case.faults, hosts // 2), attempt, asked.slow, case.kinds)
                with (
                    tempfile.TemporaryDirectory() as folder,
                    played_farm(Path(folder) / "farm", parts) as farm,
                ):
                    cost, report = start(farm, tree, Path(folder) / "run", case.interrupt)
                    costs[name].append(cost)
                    wrong = mistakes(farm, report, bool(case.interrupt))
                if wrong:
                    print(
                        f"{name}, {case.name}, {hosts} hosts, seed {attempt}:",
                        *wrong[:20],
                        sep="\n",
                        file=sys.stderr,
                    )
                    bad[name, case.name, hosts] += 1
        for name, each in costs.items():
            seconds = [cost.seconds for cost in each]
            medians.setdefault((name, case.name), {})[hosts] = statistics.median(seconds)
            print(
                f"| {case.name} | {hosts} | {name} | {_text(seconds)} "
                f"| {_text([cost.cpu for cost in each])} | {_text([cost.cpu / hosts for cost in each], 3)} "
                f"| {_text([cost.hosts_cpu for cost in each])} | {max(cost.launcher for cost in each):.0f} "
                f"| {max(cost.total for cost in each):.0f} | {max(cost.threads for cost in each)} "
                f"| {max(cost.files for cost in each)} | {max(cost.processes for cost in each)} "
                f"| {max(cost.logins for cost in each)} | {bad[name, case.name, hosts]} of {len(each)} |",
                flush=True,
            )
    few, many = min(asked.hosts), max(asked.hosts)
    if few < many:
        for (name, what), taken in medians.items():
            print(f"{name}, failing: {what}: time({many}) / time({few}) = {taken[many] / taken[few]:.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
