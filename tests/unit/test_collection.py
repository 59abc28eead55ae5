"""No test imports vLLM in pytest's processes, except in the folder that has a process of its own.

Every process of `make test` collects all files, and vLLM changes torch where it is imported.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for path in sorted((*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("tests/**/conftest.py")))
    if path.parent.name != "inside_vllm"
]
SOURCES = (ROOT, ROOT / "vllm")


def imported(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Yield the modules that statements import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (one.name for one in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{one.name}" for one in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
            yield from (str(one.value) for one in node.args[:1] if isinstance(one, ast.Constant))


def at_import(path: Path) -> Iterator[ast.AST]:
    """Yield the statements of a file that run when it is imported, and the calls that they consist of."""
    for node in ast.parse(path.read_text()).body:
        yield node
        if isinstance(node, ast.Expr | ast.Assign):
            yield node.value


@functools.cache
def loads_vllm(module: str) -> bool:
    """Return whether a module is of vLLM, or one of ours that imports it."""
    if module.partition(".")[0] == "vllm":
        return True
    if module.partition(".")[0] not in ("vllm_flagscale", "flagscale_testing", "tests"):
        return False
    files = (root / f"{module.replace('.', '/')}.py" for root in SOURCES)
    return any(loads_vllm(one) for file in files if file.is_file() for one in imported(at_import(file)))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_test_imports_vllm(path: Path) -> None:
    found = [one for one in imported(ast.walk(ast.parse(path.read_text()))) if loads_vllm(one)]
    assert found == [], "put these tests into tests/inside_vllm, or run them in a process of its own"
