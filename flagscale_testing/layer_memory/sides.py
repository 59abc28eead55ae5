"""Measure cases with the layers of this tree, or with those of another commit and the same measuring code."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flagscale.run.env import CHIP
from flagscale_testing.layer_memory.cases import Case, Kept

ROOT = Path(__file__).parents[2]
_PACKAGE = Path(__file__).parent.relative_to(ROOT)


def measured(cases: Sequence[Case], tree: Path = ROOT) -> list[list[Kept]]:
    """Return what each case keeps with the layers of a tree, measured in a process of its own.

    Raises `subprocess.CalledProcessError`, after the traceback on stderr, if a layer cannot be built.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "flagscale_testing.layer_memory.child"],
        input=json.dumps([dataclasses.asdict(case) for case in cases]),
        env={**os.environ, CHIP: "cpu", "PYTHONPATH": f"{tree}:{tree / 'vllm'}"},
        cwd=tree,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    )
    return [
        [Kept(**{**row, "shape": tuple(row["shape"])}) for row in rows] for rows in json.loads(done.stdout)
    ]


@contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """Extract a commit into a temporary folder, with this tree's measuring code in place of its own.

    It is no worktree, because git would go on listing one if this process is killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        tree, archive = Path(folder) / "tree", Path(folder) / "tree.tar"
        subprocess.run(["git", "archive", f"--output={archive}", commit], cwd=ROOT, check=True)
        with tarfile.open(archive) as files:
            files.extractall(tree, filter="data")
        archive.unlink()
        shutil.copytree(ROOT / _PACKAGE, tree / _PACKAGE, dirs_exist_ok=True)
        yield tree


def commit_of(name: str) -> str | None:
    """Return the full hash of a commit of this repository; None if there is no such commit."""
    found = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return found.stdout.strip() or None
