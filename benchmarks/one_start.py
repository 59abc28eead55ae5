"""The launching side of `benchmarks.thousand`: start one job in a process of its own, and say how it went.

    python -P benchmarks/one_start.py SPEC.json

It imports only what every version of FlagScale has, so `PYTHONPATH` decides which one is measured. It prints
a line of JSON once it is ready, begins when it reads a line, prints the outcome, and waits for another line:
its connections stay open until all is measured.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from flagscale.errors import FlagScaleError
from flagscale.remote import launcher
from flagscale.run.env import run_tags
from flagscale.run.rundir import RunDir
from flagscale.values import Channel, Host, LaunchPlan, NodeCommand
from flagscale_testing.jobs.plans import fake_plan


def plan_of(addresses: list[str], exp_dir: Path, run_id: str, **more: Any) -> LaunchPlan:
    """Return the plan of a training with one rank on each host, with arguments as long as real ones."""
    files = RunDir(exp_dir)
    hosts = [Host(rank, address, 8, "cpu") for rank, address in enumerate(addresses)]
    program = tuple(word for n in range(60) for word in (f"--some-argument-{n}", str(1000 + n)))
    nodes = [
        NodeCommand(
            host=host,
            argv=(sys.executable, "-m", "fake.agent"),
            env={"OMP_NUM_THREADS": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1", **run_tags(run_id, host.rank)},
            cwd=str(exp_dir),
            failure_file=str(files.failure(host)),
            stop_grace=10.0,
            options={"nnodes": str(len(hosts)), "node-rank": str(host.rank), "master-addr": addresses[0]},
            program=("--module", "fake.train", *program),
        )
        for host in hosts
    ]
    channel = Channel(addresses[0], 29501) if len(hosts) > 1 else None
    return fake_plan(exp_dir, run_id, nodes, start_timeout=60.0, channel=channel, **more)


def main(file: str) -> None:
    """Build the plan, wait for the word to begin, start it."""
    spec = json.loads(Path(file).read_text())
    plan = plan_of(spec["addresses"], Path(spec["exp_dir"]), spec["run_id"], **spec.get("more", {}))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    most = [1]

    def count_threads() -> None:
        while True:
            most[0] = max(most[0], threading.active_count() - 1)
            time.sleep(0.05)

    threading.Thread(target=count_threads, daemon=True).start()
    print("{}", flush=True)
    sys.stdin.readline()
    begun = time.monotonic()
    outcome = ""
    try:
        launcher.start(plan, "", {})
    except KeyboardInterrupt:
        outcome = "interrupted"
    except FlagScaleError as error:
        outcome = str(error)
    seconds = time.monotonic() - begun
    print(json.dumps({"seconds": seconds, "threads": most[0], "outcome": outcome}), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main(sys.argv[1])
