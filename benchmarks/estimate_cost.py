"""CPU seconds of `action=estimate` against an app that only composes the same files, in one run.

Each command is a whole process, A and B in turn; CPU seconds (user and system) rather than wall seconds,
because machines are shared. `own` is the difference: checks, planner, text, and the imports of all that.

    python -m benchmarks.estimate_cost [--rounds N]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
COMPOSING = "benchmarks/composing_app.py"
CASES = {
    "7B, dp 8": ("config_7b", ()),
    "70B, tp 8, pp 4, 4 hosts": (
        "config_70b",
        (
            "experiment.runner.hostfile=null",
            "+experiment.runner.nnodes=4",
            "train.system.pipeline_model_parallel_size=4",
        ),
    ),
    "70B, tp 8, pp 16, 64 hosts": (
        "config_70b",
        (
            "experiment.runner.hostfile=null",
            "+experiment.runner.nnodes=64",
            "train.system.pipeline_model_parallel_size=16",
        ),
    ),
}


def cpu_seconds(command: Sequence[str], folder: Path) -> float:
    """Return the user and system seconds of a process; raises CalledProcessError if it fails."""
    before = os.times()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for title, (config, more) in CASES.items():
            where = ["--config-path", str(ROOT / "examples/aquila/conf"), "--config-name", config]
            hosts = ["experiment.exp_dir=run", *more]
            if not more:
                hosts.append(f"experiment.runner.hostfile={ROOT}/examples/aquila/conf/hostfile.local")
            words = [*where, *hosts]
            app, run = ([sys.executable, str(ROOT / name), *words] for name in (COMPOSING, "run.py"))
            commands = {
                "composing": app,
                "estimate": [*run, "action=estimate", "+chip=H100"],
                "with a picture": [*run, "action=estimate", "+chip=H100", "+picture=p.svg"],
            }
            found: dict[str, list[float]] = {each: [] for each in commands}
            for number in range(rounds + 1):
                for each, command in commands.items():
                    taken = cpu_seconds(command, folder)
                    if number:  # the first round fills the file cache
                        found[each].append(taken)
            base = statistics.median(found["composing"])
            for each, values in found.items():
                own = statistics.median(values) - base
                print(f"{title}: {each:14} {statistics.median(values):.3f} s, own {own:.3f} s")


if __name__ == "__main__":
    main()
