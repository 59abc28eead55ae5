"""Measure the memory of a supervisor and its guard, the two processes that stay on a host beside the job.

The job is the fake agent of the tests on hosts of this machine, each an sshd on a loopback address, so that
the supervisors have a channel. `smaps_rollup` of Linux gives PSS, in which a page that several processes use
counts in part for each. On this machine other Pythons share such pages with them; *alone* is what the two
would use on a host without another Python: everything of the supervisor, and what the guard does not share.
The sides alternate; figures are medians and ranges over all hosts and rounds.

    python -m benchmarks.footprint [--hosts 4] [--rounds 3] [--other CHECKOUT]

`--other` is the folder of another version as a second side, whose plans must have the same format.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.fanout import ROOT, plan_of, quick_farm
from flagscale.remote import launcher
from flagscale.run.state import ProcessId
from flagscale_testing.farm.loopback import LoopbackFarm

_SETTLED = 3.0
"""Seconds after a start at which the processes are looked at."""


@dataclass(frozen=True)
class Footprint:
    """Megabytes of a supervisor and its guard together."""

    pss: float
    alone: float


def footprints(farm: LoopbackFarm, source_root: Path, run_id: str) -> Iterator[Footprint]:
    """Run a job with the code of a checkout, and yield the memory of each of its hosts."""
    with tempfile.TemporaryDirectory() as folder:
        plan = plan_of(farm.hosts, Path(folder), run_id, "rank")
        # With a line of the user, all versions start by the script; the processes that stay are the same.
        plan = replace(plan, source_root=str(source_root), before_start=":")
        launcher.start(plan, "", {})
        try:
            time.sleep(_SETTLED)
            for host in launcher.status(plan):
                assert host.state
                supervisor, guard = map(_memory, (host.state.supervisor, host.state.guard))
                own = guard["Private_Clean"] + guard["Private_Dirty"]
                yield Footprint(supervisor["Pss"] + guard["Pss"], supervisor["Rss"] + own)
        finally:
            launcher.stop(plan)


def _memory(process: ProcessId | None) -> dict[str, float]:
    """Return the figures of `smaps_rollup` (proc(5)) in megabytes."""
    assert process
    lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    fields = (line.split() for line in lines)
    return {name.rstrip(":"): int(kilobytes) / 1024 for name, kilobytes, *_ in fields}


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main(words: Sequence[str]) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hosts", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--other", type=Path)
    asked = parser.parse_args(words)
    sides = {"this version": ROOT, **({"the other": asked.other.resolve()} if asked.other else {})}
    found: dict[str, list[Footprint]] = {side: [] for side in sides}
    with quick_farm(asked.hosts) as farm:
        os.environ.clear()
        os.environ.update(farm.environment())
        for number in range(asked.rounds):
            for place, (side, source_root) in enumerate(sides.items()):
                found[side] += footprints(farm, source_root, f"footprint-{number}-{place}")
    print("| supervisor and guard | PSS, MB | alone, MB |")
    print("|---|---|---|")
    for side, known in found.items():
        print(f"| {side} | {_spread([one.pss for one in known])} | {_spread([one.alone for one in known])} |")


if __name__ == "__main__":
    main(sys.argv[1:])
