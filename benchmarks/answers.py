"""Compare how long `dryrun` and `query` take with a Hydra app that only composes the same files.

`dryrun` plans the 70B example for 32 hosts; `query` asks for the state of a run of the demo that has finished
(20 iterations on two ranks, trained before the first round). `import` is `python -c "import hydra"`, for
scale. Each round starts every side once, in turn, and every other round in the opposite order. With `--base
CLONE`, another commit of ours is measured in the same rounds. All sides read compiled modules from a cache,
as installed packages do.

Prints, for each side, the median and the interval (smallest to largest) of CPU seconds and of wall seconds,
and ratios of the CPU seconds of the same round.

    python -m benchmarks.answers [--base CLONE] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage

from benchmarks.launch_overhead import command

ROOT = Path(__file__).resolve().parents[1]
_HOSTS = 32


@dataclass(frozen=True)
class Timing:
    """Seconds of one process and its children."""

    cpu: float
    wall: float


def timed(words: Sequence[str], folder: Path) -> Timing:
    """Run a command line in a folder; raises CalledProcessError if it fails."""
    environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment.pop("PYTHONPATH", None)  # each clone's run.py imports its own sources
    before, begun = getrusage(RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL, cwd=folder, env=environment)
    after, ended = getrusage(RUSAGE_CHILDREN), time.perf_counter()
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Timing(used, ended - begun)


def sides(folder: Path, base: Path | None) -> Mapping[str, list[str]]:
    """Return the command lines by the name of their side; the run of `query` is in `folder`."""
    experiment = ["--config-path", str(ROOT / "examples/aquila/conf"), "--config-name"]
    hosts = f"experiment.runner.hostfile={folder / 'hosts'}"
    app = [sys.executable, str(ROOT / "benchmarks/composing_app.py"), *experiment]
    found = {
        "import": [sys.executable, "-c", "import hydra"],
        "dryrun, app": [*app, "config_70b", "action=dryrun", hosts],
        "query, app": [*app, "config", "action=query", f"experiment.exp_dir={folder / 'run'}"],
    }
    for name, root in (("", ROOT), (", base", base)):
        if root:
            ours = [sys.executable, str(root / "run.py"), *experiment]
            found[f"dryrun{name}"] = [*ours, *found["dryrun, app"][len(app) :]]
            # Each side asks for a run of its own: an older version need not understand a newer one's state.
            run = trained(root, folder / f"run{len(found)}")
            found[f"query{name}"] = [*ours, "config", "action=query", f"experiment.exp_dir='{run}'"]
    return found


def trained(root: Path, run: Path) -> Path:
    """Train the demo for 20 iterations, and return its run directory."""
    python, _, *words = command(run, 20, "test")
    subprocess.run(
        [python, str(root / "run.py"), *words], check=True, stdout=subprocess.DEVNULL, cwd=run.parent
    )
    return run


def _described(values: Sequence[float]) -> str:
    return f"{statistics.median(values):6.3f} ({min(values):.3f} to {max(values):.3f})"


def main() -> None:
    """Run the rounds and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", type=Path, help="a clone of another commit of ours")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lines = (f"worker{number} slots=8" for number in range(_HOSTS))
        folder.joinpath("hosts").write_text("\n".join(lines) + "\n")
        lines_of = sides(folder, arguments.base and arguments.base.resolve())
        found: dict[str, list[Timing]] = {side: [] for side in lines_of}
        for number in range(arguments.rounds + 1):
            for side in list(lines_of)[:: -1 if number % 2 else 1]:
                timing = timed(lines_of[side], folder)
                if number:  # the first round compiles the modules
                    found[side].append(timing)
    for side, timings in found.items():
        cpu, wall = ([getattr(one, kind) for one in timings] for kind in ("cpu", "wall"))
        print(f"{side:13}  CPU s {_described(cpu)}   wall s {_described(wall)}")
    pairs = [(one, f"{one}, {other}") for one in ("dryrun", "query") for other in ("app", "base")]
    for one, other in (pair for pair in pairs if pair[1] in found):
        ratios = [mine.cpu / its.cpu for mine, its in zip(found[one], found[other], strict=True)]
        print(f"{one} / {other}: {_described(ratios)}")


if __name__ == "__main__":
    main()
