"""The imports of the sources: layers without an exemption, no cycles, no heavy packages."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from flagscale.registry import BUILT_IN

ROOT = Path(__file__).parents[2]
FLAGSCALE = ROOT / "flagscale"

LAYERS: tuple[tuple[str, ...], ...] = (
    ("frozen",),
    ("__init__", "errors", "formats", "linux", "streams", "svg", "values"),
    ("files", "registry", "vision"),
    ("config", "checks", "run"),
    ("platforms", "planner"),
    ("engines",),
    ("plan",),
    ("node",),
    ("remote",),
    ("runners",),
    ("status",),
    ("start",),
    ("estimates",),
    ("tuning",),
    ("actions", "bundled", "sweep"),
    ("cli",),
)
"""From the bottom up: a module imports from lower layers and from its own package, and from nothing else."""

SHARED_WITH_WORKERS = (
    "errors",
    "files",
    "formats",
    "frozen",
    "linux",
    "svg",
    "values",
    "registry",
    "checks",
    "run",
    "vision",
    "config.bounds",
    "config.catalog",
    "planner",
)
"""What the data plane may import: the standard library alone stands below these."""

HEAVY = ("torch", "megatron", "vllm", "transformers", "numpy")

SEARCHES = tuple(
    f"planner/search/{name}.py"
    for name in ("layer_split", "mesh_candidates", "mesh_options", "mesh_search", "stage_grid")
)
"""Where numpy may be imported: nothing imports these before a search of plans begins."""

EFFECTS = ("subprocess", "socket", "psutil", "paramiko")
EFFECTS_IN = {
    "node",
    "remote",
    "linux.py",
    "engines/megatron/huggingface.py",  # the conversion, which knows the families of models
    "engines/megatron/own_arguments.py",  # the arguments of a user's own program
    "platforms/nvidia.py",
    "run/machine.py",
    "runners/slurm/commands.py",
    "runners/slurm/questions.py",
    "runners/slurm/srun.py",
    "runners/slurm/step.py",
}
"""Where processes, sockets and hosts may be touched."""

PACKAGES = {
    "flagscale": FLAGSCALE,
    "flagscale_testing": ROOT / "flagscale_testing",
    "megatron.flagscale": ROOT / "megatron" / "flagscale",
    "vllm_flagscale": ROOT / "vllm" / "vllm_flagscale",
    "energon_flagscale": ROOT / "megatron-energon" / "energon_flagscale",
    "tools": ROOT / "tools",
    "benchmarks": ROOT / "benchmarks",
}

SOURCES = sorted(FLAGSCALE.rglob("*.py"))


def nodes(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes of a file, those inside functions too, but not what is imported for types only."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from nodes(node)


def imports(path: Path) -> set[str]:
    """Return the full names a file imports."""
    found: set[str] = set()
    for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer_of(part: str) -> int:
    return next(number for number, layer in enumerate(LAYERS) if part in layer)


def part_of(path: Path) -> str:
    """Return the package or module directly below `flagscale` that a file belongs to."""
    return path.relative_to(FLAGSCALE).parts[0].removesuffix(".py")


def label(path: Path) -> str:
    return str(path.relative_to(FLAGSCALE))


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_a_module_imports_from_lower_layers_only(path: Path) -> None:
    known = {part for layer in LAYERS for part in layer}
    importer = part_of(path)
    assert importer in known, f"add {importer} to LAYERS"
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "flagscale":
            imported = rest[0] if rest and rest[0] in known else "__init__"
            is_lower = layer_of(imported) < layer_of(importer)
            assert is_lower or imported == importer, f"{label(path)} imports {name}"


def modules() -> dict[str, Path]:
    found = {}
    for package, folder in PACKAGES.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return found


def test_no_modules_import_each_other_in_a_cycle() -> None:
    known = modules()
    graph = {
        module: {
            target
            for name in imports(path)
            for target in (name, name.rpartition(".")[0])
            if target in known and target != module
        }
        for module, path in known.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_the_control_plane_imports_no_engine(path: Path) -> None:
    allowed = {"numpy"} if label(path) in SEARCHES else set()
    assert {name.split(".")[0] for name in imports(path)}.isdisjoint({*HEAVY} - allowed)


def test_importing_the_planner_loads_no_numpy() -> None:
    imported = "flagscale.planner.search.plans, flagscale.planner.search.task_file"
    code = f"import sys, {imported}; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_processes_and_sockets_are_touched_at_the_edge_only(path: Path) -> None:
    if label(path) not in EFFECTS_IN and part_of(path) not in EFFECTS_IN:
        assert {name.split(".")[0] for name in imports(path)}.isdisjoint(EFFECTS)


def test_only_a_runner_knows_its_name() -> None:
    """What differs between runners is a field of the runner, not a comparison of its name elsewhere."""
    built_in = {*BUILT_IN["runners"]}
    for path in SOURCES:
        if part_of(path) == "runners":
            continue
        for node in nodes(ast.parse(path.read_text(encoding="utf-8"))):
            compared = node.pattern if isinstance(node, ast.match_case) else node
            if isinstance(compared, ast.Compare | ast.pattern):
                words = {one.value for one in ast.walk(compared) if isinstance(one, ast.Constant)}
                assert words.isdisjoint(built_in), f"{label(path)}:{compared.lineno} compares a runner's name"


def test_importing_the_command_loads_no_engine() -> None:
    code = f"import sys, flagscale.cli, flagscale.actions; print([m for m in {HEAVY} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_data_plane_imports_only_what_is_shared() -> None:
    allowed = tuple(f"flagscale.{name}." for name in SHARED_WITH_WORKERS)
    for folder in ("megatron.flagscale", "vllm_flagscale", "energon_flagscale"):
        for path in sorted(PACKAGES[folder].rglob("*.py")):
            for name in imports(path):
                if name.split(".")[0] == "flagscale":
                    assert f"{name}.".startswith(allowed), f"{path.relative_to(ROOT)} imports {name}"


def test_tests_and_benchmarks_share_helpers_through_their_own_package_only() -> None:
    for folder, other in (
        ("benchmarks", "tests"),
        ("flagscale_testing", "tests"),
        ("flagscale_testing", "benchmarks"),
    ):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tops = {name.split(".")[0] for name in imports(path)}
            assert other not in tops, f"{path.relative_to(ROOT)} imports {other}"


def test_a_session_that_starts_a_job_loads_little() -> None:
    """Tens of hosts are started at once, and imports take most of the time."""
    code = "import sys, flagscale.node.commands, flagscale.node.start; print('psutil' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
