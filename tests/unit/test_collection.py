"""What the collection of tests imports: every process of `make test` collects all files, and runs a few."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("tests/**/conftest.py")))
SOURCES = (ROOT, ROOT / "vllm")


def imported(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports when it is imported itself."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)
        elif isinstance(node, ast.Expr | ast.Assign) and isinstance(call := node.value, ast.Call):
            is_import = ast.unparse(call.func) == "pytest.importorskip"
            yield from (str(one.value) for one in call.args[:is_import] if isinstance(one, ast.Constant))


@functools.cache
def loads_vllm(module: str) -> bool:
    """Return whether a module is of vLLM, or one of ours that imports it."""
    if module.partition(".")[0] == "vllm":
        return True
    if module.partition(".")[0] not in ("vllm_flagscale", "flagscale_testing", "tests"):
        return False
    files = (root / f"{module.replace('.', '/')}.py" for root in SOURCES)
    return any(loads_vllm(one) for file in files if file.is_file() for one in imported(file))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_file_imports_vllm_before_its_tests_run(path: Path) -> None:
    found = [one for one in imported(path) if loads_vllm(one)]
    assert found == [], "seconds of CPU in every process: import it in the tests, or in a process of its own"
