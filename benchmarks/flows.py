"""Count the files of the control plane that a command enters, and the switches of execution between them.

Three commands run on the shipped demo with a hostfile that names this host: `dryrun`, and, with one rank on
CPU, `query` and `stop` of a run that is still importing its engine. Each runs in a fresh process under
`sys.setprofile`, in all threads. Only calls of functions whose file is below CLONE/flagscale/ count:

* A *file* is entered if one of its functions is called. Bodies of modules and classes do not count (or every
  import would), but functions called while importing do. The supervisor's own process does not count.
* A *switch* is a call into another file than the previous counted call of the same thread. Resuming a
  generator is a call, as `sys.setprofile` reports it; returning from a function is not. `stop` polls until
  the job has ended, so its switches grow with that time; its files do not.

The only name used here is `flagscale.cli.main`, so one copy of this script measures any commit. `--time N`
also times N pairs of whole `dryrun` processes, A and B in turn, and prints the ratio B/A of each pair, the
mean of these ratios and its 95 % interval.

    python benchmarks/flows.py [--root CLONE_A] [--paired CLONE_B] [--time N]
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

FLOWS = ("dryrun", "query", "stop")
TOKENS = 4096
ONE_RANK = [
    "experiment.runner.platform=cpu",
    "experiment.runner.nproc_per_node=1",
    "train.system.tensor_model_parallel_size=1",
    "train.system.pipeline_model_parallel_size=1",
]


@dataclass(frozen=True)
class Flow:
    """The number of files that one command entered, and of switches between them."""

    files: int
    switches: int


def flow_of(calls: Iterable[tuple[int, str]]) -> Flow:
    """Count files and switches of ordered calls; each is a thread and the file of the called function."""
    files: set[str] = set()
    current: dict[int, str] = {}
    switches = 0
    for thread, file in calls:
        switches += current.get(thread, file) != file
        current[thread] = file
        files.add(file)
    return Flow(len(files), switches)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean, by a bootstrap of 10 000 resamples with a fixed seed."""
    draw = random.Random(0).choices
    means = sorted(statistics.fmean(draw(values, k=len(values))) for _ in range(10_000))
    return means[250], means[-251]


def trace(root: Path, outcome: Path, words: list[str]) -> int:
    """Run a command line in this process, write its flow as JSON, and return its exit code."""
    sys.path.insert(0, str(root))
    below = f"{root / 'flagscale'}/"
    calls: list[tuple[int, str]] = []

    def note(frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        # The bodies of modules and classes are the code that is not optimized.
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and code.co_filename.startswith(below):
            calls.append((threading.get_ident(), code.co_filename))

    threading.setprofile(note)
    sys.setprofile(note)
    from flagscale.cli import main as flagscale

    exit_code = flagscale(words)
    sys.setprofile(None)
    flow = flow_of(calls)
    outcome.write_text(json.dumps([flow.files, flow.switches]))
    return exit_code


def flows(root: Path) -> dict[str, Flow]:
    """Return the flow of each command of a clone."""
    found: dict[str, Flow] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        outcome, words = folder / "outcome.json", _words(root, folder)

        def traced(action: str, *more: str) -> None:
            command = [__file__, "--trace", str(root), str(outcome), *words, *more, f"action={action}"]
            _execute(command, folder)
            found[action] = Flow(*json.loads(outcome.read_text()))

        traced("dryrun")
        _execute([str(root / "run.py"), *words, *ONE_RANK, "action=run"], folder)
        try:
            traced("query", *ONE_RANK)
        finally:
            traced("stop", *ONE_RANK)
    return found


def times(roots: Sequence[Path], pairs: int) -> list[tuple[float, float]]:
    """Return the seconds of a whole `dryrun` process of both clones, pair by pair."""
    rows: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        a, b = ([str(root / "run.py"), *_words(root, folder), "action=dryrun"] for root in roots)
        for number in range(pairs + 1):
            # The first of each pair changes, so that neither gains from its position.
            if number % 2:
                later, sooner = _execute(b, folder), _execute(a, folder)
                rows.append((sooner, later))
            else:
                rows.append((_execute(a, folder), _execute(b, folder)))
    return rows[1:]  # the first pair fills the file cache


def _words(root: Path, folder: Path) -> list[str]:
    """Return the command line of the demo, after writing the files that it reads into a folder."""
    prefix, tokenizer, hostfile = folder / "text", folder / "tokenizer", folder / "hostfile"
    # Megatron's indexed dataset: version 1, uint16, one sequence, one document.
    index = struct.pack("<9sQBQQiqqq", b"MMIDIDX\0\0", 1, 8, 1, 2, TOKENS, 0, 0, 1)
    prefix.with_suffix(".idx").write_bytes(index)
    prefix.with_suffix(".bin").write_bytes(bytes(2 * TOKENS))
    tokenizer.mkdir(exist_ok=True)
    (tokenizer / "tokenizer.json").write_text("{}")
    hostfile.write_text("localhost slots=4\n")
    return [
        *("--config-path", str(root / "examples/aquila/conf"), "--config-name", "config"),
        f"experiment.exp_dir={folder / 'run'}",
        f"+experiment.runner.hostfile={hostfile}",
        *(f"train.data.{kind}_data_path=[{prefix}]" for kind in ("train", "valid")),
        f"train.data.tokenizer.tokenizer_model={tokenizer}",
    ]


def _execute(words: Sequence[str], folder: Path) -> float:
    """Run a Python program in a folder and return its seconds; exit with its output if it fails."""
    begun = time.perf_counter()
    done = subprocess.run([sys.executable, *words], cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"exit code {done.returncode} of: {' '.join(words)}\n{done.stdout}{done.stderr}")
    return seconds


def main() -> None:
    """Measure one clone, or two side by side, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path(), help="the clone to measure, A (default: here)")
    parser.add_argument("--paired", type=Path, help="another clone, B, to print beside it")
    parser.add_argument("--time", type=int, default=0, help="pairs of `dryrun` to time; needs --paired")
    asked = parser.parse_args()
    if asked.time and not asked.paired:
        parser.error("--time compares two clones: give the second with --paired")
    roots = [root.resolve() for root in (asked.root, asked.paired) if root]
    for root in roots:
        if not (root / "flagscale/cli.py").is_file():
            parser.error(f"not a clone of FlagScale: {root}")
    names = "AB"[: len(roots)]
    print("\n".join(f"{name}: {root}" for name, root in zip(names, roots, strict=True)), end="\n\n")
    found = [flows(root) for root in roots]
    print("| flow |", " | ".join(f"{what}, {name}" for what in ("files", "switches") for name in names), "|")
    print("|---" * (1 + 2 * len(roots)) + "|")
    for action in FLOWS:
        figures = [each[action].files for each in found] + [each[action].switches for each in found]
        print(f"| {action} |", " | ".join(map(str, figures)), "|")
    if asked.time:
        rows = times(roots, asked.time)
        ratios = [b / a for a, b in rows]
        low, high = interval(ratios)
        a, b = (statistics.median(seconds) for seconds in zip(*rows, strict=True))
        print(f"\ndryrun, medians of {len(rows)} pairs: A {a:.2f} s, B {b:.2f} s")
        print("B/A, pair by pair:", " ".join(f"{ratio:.3f}" for ratio in ratios))
        print(f"B/A, mean: {statistics.fmean(ratios):.3f}, 95 % interval {low:.3f} to {high:.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--trace"]:
        sys.exit(trace(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
    main()
