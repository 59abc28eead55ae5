"""Measure this machine's chips for `experiment.chips`: `python tools/profile_chip.py chips.json --name NAME`.

Ranks on all devices of this host measure at the same time, as they train. Every finished part is written at
once, so a repeated command continues; other entries of the file are kept.
"""

from __future__ import annotations

import json
import os
import platform as machine
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

if not __package__:  # run as a file: import from the root of the repository, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import flagscale
from flagscale.errors import Problem, UserError, nearest
from flagscale.formats import count, duration
from flagscale.platforms import Platform, find
from flagscale.run.env import CHIP
from tools.chip_file import (
    PARTS,
    begun,
    known_parts,
    own_entry,
    put,
    read_entries,
    require_writable,
    summary,
    write_entry,
)
from tools.command import run
from tools.progress import Progress


def main() -> int:
    """Measure what the file does not have yet; return 1 if the ranks fail, whose output is then printed."""
    given = _parser().parse_args()
    platform = find(given.platform, "--platform")
    name = given.name or platform.name
    ranks = _ranks(given.ranks, platform)
    source = {"machine": machine.node(), "torch": _torch(), "ranks": ranks, "quick": given.quick}
    entry = own_entry(read_entries(given.file), name, str(given.file))
    require_writable(given.file)
    known = known_parts(name, entry, source) if entry is not None and not given.again else []
    if entry is None or not known:
        entry = begun(name, entry, {**source, "date": date.today().isoformat()})
    already = f"; known already: {count(len(known), 'part')}" if known else ""
    print(f"measuring {name} with {count(ranks, 'rank')} ({platform.name}){already}", flush=True)
    since = time.monotonic()
    with _started(platform, ranks, _options(given, known)) as (process, errors):
        for part, value in _parts(process.stdout or (), entry):
            put(entry, part, value)
            write_entry(given.file, name, entry)
            print(f"  {summary(part, value)}", flush=True)
        if code := process.wait():
            errors.seek(0)
            print(f"{errors.read()}\nerror: the ranks ended with exit code {code}", file=sys.stderr)
            return 1
    print(f"{name} is in {given.file} after {duration(time.monotonic() - since)}")
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="file of chips to write or to complete")
    parser.add_argument(
        "--name", help="name of the entry, also in a hostfile's type= (default: the platform's)"
    )
    parser.add_argument("--platform", default="auto", help="kind of devices (default: that of this host)")
    parser.add_argument("--ranks", type=_positive, help="ranks that measure (default: the devices; 2 on CPU)")
    parser.add_argument("--quick", action="store_true", help="small sizes only: about 20 seconds")
    parser.add_argument(
        "--only", type=_part, action="append", default=[], help="a part to measure, such as gemm or gemm/fp8"
    )
    parser.add_argument("--again", action="store_true", help="replace what was measured before")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"'{text}' is not a positive whole number")
    return int(text)


def _part(text: str) -> str:
    if (kind := text.partition("/")[0]) not in PARTS:
        raise ArgumentTypeError(f"there is no part '{text}'; {nearest(kind, PARTS)}")
    return text


def _ranks(asked: int | None, platform: Platform) -> int:
    """Return how many ranks measure: one per device, unless they share devices."""
    if platform.shares_devices:
        return asked or min(2, len(os.sched_getaffinity(0)))
    devices = platform.count_devices(os.environ)
    if not devices:
        raise UserError([Problem(f"this host has no devices of `{platform.name}`", "--platform")])
    if asked and asked > devices:
        raise UserError([Problem(f"{asked} ranks, but {count(devices, 'device')}", "--ranks")])
    return asked or devices


def _torch() -> str:
    from importlib.metadata import version

    if find_spec("torch") is None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")
    return version("torch")


def _options(given: Namespace, known: Sequence[str]) -> list[str]:
    words = [*["--quick"] * given.quick, f"--without={','.join(known)}"]
    return [*words, f"--only={','.join(given.only)}"]


@contextmanager
def _started(
    platform: Platform, ranks: int, options: Sequence[str]
) -> Iterator[tuple[subprocess.Popen[str], Any]]:
    """Start the ranks; end them if what follows fails."""
    launch = ["--standalone", "--nproc-per-node", str(ranks), "-m", "megatron.flagscale.profiling", *options]
    root = str(Path(flagscale.__file__).parents[1])
    search_path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    own = {**platform.env, **platform.rank_env, CHIP: platform.name, "PYTHONPATH": search_path}
    command = [sys.executable, "-m", "megatron.flagscale.torchrun", *launch]
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, env={**os.environ, **own}, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            yield process, errors
        finally:
            process.terminate()
            process.wait()


def _parts(lines: Iterable[str], entry: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the parts that the first rank reports, and show its progress; other lines are not its own."""
    progress: Progress | None = None
    for line in lines:
        if not line.startswith("{"):
            continue
        told = json.loads(line)
        if "points" in told:
            entry["measured"]["source"]["device"] = told["device"]
            entry["measured"]["memory_gib"] = round(told["memory_bytes"] / 2**30, 3)
            progress = Progress(told["points"]).__enter__()
        elif "part" in told:
            yield told["part"], told["value"]
        elif progress:
            progress.advance(told["done"], points=told["done"])
        if "absent" in told:
            print(f"  {told['absent']}: not on this chip: {told['why']}", flush=True)
    if progress:
        progress.__exit__(None)


if __name__ == "__main__":
    sys.exit(run(main))
