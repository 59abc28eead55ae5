"""Hardware is named in two packages only: the launcher's platforms and the worker's chips."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from flagscale import platforms

ROOT = Path(__file__).parents[2]
SEARCHED = (ROOT / "flagscale", ROOT / "megatron" / "flagscale", ROOT / "vllm")
HOMES = (ROOT / "flagscale" / "platforms", ROOT / "megatron" / "flagscale" / "chips")
NAMES = ("cuda", "nccl", "gloo", "cpu")
VARIABLES = ("CUDA_", "NCCL_", "HIP_")


def namings(source: str) -> Iterator[str]:
    """Yield the places where a source uses `torch.cuda` or a tensor's `.cuda()`, or names a chip."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            is_named = node.attr in ("cuda", "is_cuda")
        elif isinstance(node, ast.ImportFrom | ast.Import):
            module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            is_named = any(f"{module}{alias.name}".startswith("torch.cuda") for alias in node.names)
        else:
            text = str(node.value) if isinstance(node, ast.Constant) else ""
            is_named = text.partition(":")[0] in NAMES or text.startswith(VARIABLES)
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
        "os.environ.setdefault('CUDA_DEVICE_MAX_CONNECTIONS', '1')",
        "debug = {'NCCL_DEBUG': 'INFO'}",
    ],
)
def test_a_name_of_hardware_is_found(source: str) -> None:
    assert list(namings(source))


def test_prose_about_hardware_is_not_found() -> None:
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
