"""Hardware is named in two packages only: what a chip is to the launcher, and what it is to the worker."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagscale import platforms

ROOT = Path(__file__).parents[2]
SEARCHED = (ROOT / "flagscale", ROOT / "megatron" / "flagscale")
HOMES = (ROOT / "flagscale" / "platforms", ROOT / "megatron" / "flagscale" / "chips")
NAMES = ("cuda", "nccl", "gloo", "cpu")


def namings(source: str) -> Iterator[str]:
    """Yield where a source asks `torch.cuda`, uses `.cuda()` of a tensor, or holds a chip's name as text."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            is_named = node.attr in ("cuda", "is_cuda")
        elif isinstance(node, ast.ImportFrom | ast.Import):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            is_named = any(f"{module}{alias.name}".startswith("torch.cuda") for alias in node.names)
        else:
            is_named = isinstance(node, ast.Constant) and str(node.value).partition(":")[0] in NAMES
        if is_named:
            yield f"line {node.lineno}: {ast.unparse(node)}"


@pytest.mark.parametrize(
    "source",
    [
        "import torch\nif torch.cuda.is_available(): pass",
        "from torch import cuda",
        "from torch.cuda import device_count",
        "batch = {name: sample[name].cuda(non_blocking=True)}",
        "if host.platform == 'cpu': pass",
        "device = f'cuda:{rank}'",
        "group = new_group(backend='cpu:gloo')",
        "def f(q):\n    return q.is_cuda",
    ],
)
def test_a_name_of_hardware_is_found(source: str) -> None:
    assert list(namings(source))


def test_what_only_speaks_of_hardware_is_not() -> None:
    assert not list(namings('"""On the cpu: gloo."""\nhint = "set experiment.runner.platform=cpu"\n'))


@pytest.mark.parametrize(
    "path",
    sorted(path for folder in SEARCHED for path in folder.rglob("*.py")),
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_no_other_file_names_hardware(path: Path) -> None:
    if not any(path.is_relative_to(home) for home in HOMES):
        assert list(namings(path.read_text(encoding="utf-8"))) == []


def test_launcher_and_worker_know_the_same_chips() -> None:
    """The worker's table is read, not imported: nothing here loads torch."""
    (table,) = (
        node.value
        for node in ast.parse((HOMES[1] / "__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "BUILT_IN"
    )
    assert set(ast.literal_eval(table)) == set(platforms.BUILT_IN)
