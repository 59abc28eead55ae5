"""The import direction of the control plane, read from its source, and what it must never load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGSCALE = ROOT / "flagscale"

LAYERS: list[set[str]] = [
    {"__init__", "errors", "registry", "files", "lifetime"},
    {"config", "parallel", "inputs", "job"},
    {"cluster"},
    {"engines", "platforms"},
    {"launch", "node"},
    {"actions", "bundled", "cli", "follow", "preflight", "prepare", "programs", "progress", "report", "tail"},
]
"""A module imports from its own layer and those above it; `launch` and `node` share the run directory."""

APART = [
    ("engines", "launch"),
    ("engines", "node"),
    ("launch", "engines"),
    ("parallel", "config"),
    ("config", "parallel"),
]
"""Pairs of one reach that must not know each other: (importer, imported)."""

HEAVY = ("torch", "megatron", "vllm", "transformers", "numpy")

EFFECTS = ("subprocess", "socket", "psutil", "paramiko")
"""Only where hosts are reached, and questions for names, addresses and the driver's processes."""
EFFECTS_IN = {
    "node",
    "launch/transport.py",
    "launch/ssh.py",
    "launch/connection.py",
    "launch/ssh_files.py",
    "launch/meeting.py",
    "cluster/hosts.py",
    "platforms/nvidia.py",
}

SOURCES = sorted(FLAGSCALE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Return the full names a file imports, also those inside functions (not those for types only)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part(name: str) -> str:
    """Return the package or module below `flagscale` that a file or dotted name belongs to."""
    pieces = name.split(".")
    return pieces[1] if len(pieces) > 1 else "__init__"


def part_of(path: Path) -> str:
    first = path.relative_to(FLAGSCALE).parts[0]
    return first.removesuffix(".py")


def rank(name: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if name in layer)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(FLAGSCALE)))
def test_imports_go_up_only(path: Path) -> None:
    importer = part_of(path)
    known = {name for layer in LAYERS for name in layer}
    assert importer in known, f"say in LAYERS where {importer} belongs"
    for name in imports(path):
        if name.split(".")[0] == "flagscale":
            imported = part(name) if part(name) in known else "__init__"
            assert rank(imported) <= rank(importer), f"{path.name} imports {name}"
            assert (importer, imported) not in APART, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(FLAGSCALE)))
def test_the_control_plane_imports_no_engine(path: Path) -> None:
    assert {name.split(".")[0] for name in imports(path)}.isdisjoint(HEAVY)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(FLAGSCALE)))
def test_processes_and_sockets_are_touched_at_the_edge_only(path: Path) -> None:
    place = str(path.relative_to(FLAGSCALE))
    if place not in EFFECTS_IN and part_of(path) not in EFFECTS_IN:
        assert {name.split(".")[0] for name in imports(path)}.isdisjoint(EFFECTS)


def test_importing_the_command_loads_no_engine() -> None:
    code = f"import sys, flagscale.cli, flagscale.actions; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_data_plane_takes_from_the_control_plane_only_what_is_shared() -> None:
    # Pure parts that need nothing beyond the standard library.
    shared = ("config.describe", "errors", "files", "inputs", "lifetime", "parallel")
    allowed = tuple(f"flagscale.{name}" for name in shared)
    for path in sorted([*(ROOT / "megatron").rglob("*.py"), *(ROOT / "vllm").rglob("*.py")]):
        for name in imports(path):
            if name.split(".")[0] == "flagscale":
                assert name.startswith(allowed), f"{path.relative_to(ROOT)} imports {name}"


def test_a_session_that_starts_a_job_loads_little() -> None:
    """Tens of hosts are started at once, and most of what that takes is imports."""
    code = "import sys, flagscale.node.serve, flagscale.node.start; print('psutil' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
