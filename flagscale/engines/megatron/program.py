"""A training program as the launcher sees it: the declarations in its file, and its own arguments.

The file is read, not imported. Only a program that has its own `add_arguments` is imported, in a child
process (`own_arguments`), which is why such a program may not import an engine at its top.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from flagscale.checks.hetero.keys import KEYS
from flagscale.checks.worker import PARTS
from flagscale.config.catalog import Catalog, Option, catalog_from
from flagscale.config.entrypoint import find_entrypoint, is_engine
from flagscale.config.secrets import is_secret
from flagscale.config.v060.keys import TASK
from flagscale.engines.megatron.own_arguments import own_arguments
from flagscale.errors import Problem, UserError

ADD_ARGUMENTS = "add_arguments"
_FRAME = "megatron.flagscale.program"


@dataclass(frozen=True)
class TrainingProgram:
    """The facts about an entrypoint that are known without starting it."""

    name: str
    """The entrypoint, as the user wrote it."""
    own_parts: frozenset[str] = frozenset(PARTS)
    """The parts that it has itself, so that rules about FlagScale's do not apply (`checks.worker.PARTS`)."""
    arguments: Mapping[str, Option] = field(default_factory=dict)
    """Its own arguments, by name without dashes."""
    has_mistake: bool = False
    """Whether it is missing or cannot be read, which is reported, so that its arguments are not known."""

    def extend(self, catalog: Catalog) -> Catalog:
        """Return the engine's catalog with the program's own arguments."""
        return replace(
            catalog_from(catalog.engine, catalog.version, {**catalog.options, **self.arguments}),
            program=self.name,
        )


def read_program(entrypoint: str, catalog: Catalog, where: str) -> TrainingProgram:
    """Return what an entrypoint (a path to a `.py`, or a module) declares.

    If its file is not found, all parts are taken as its own, and it has no arguments.

    Raises:
        UserError: with file and line if the program cannot be read, imports an engine at its top, or has an
            argument whose name is in use or is a secret's. `where` is the place that names the entrypoint.
    """
    found = find_entrypoint(entrypoint)
    source = found.source
    if source is None:
        return TrainingProgram(entrypoint, has_mistake=found.is_missing)
    tree = _parsed(source)
    top = list(_statements_at_import(tree))
    own_parts = _own_parts(tree, source)
    line = _definition(top)
    if line is None:
        return TrainingProgram(entrypoint, own_parts)
    _refuse_engine_imports(top, source)
    arguments = own_arguments(entrypoint, source, line, where)
    _refuse_names(arguments, catalog, tree, source, line)
    return TrainingProgram(entrypoint, own_parts, arguments)


def _parsed(source: Path) -> ast.Module:
    try:
        return ast.parse(source.read_bytes())
    except SyntaxError as error:
        raise UserError([Problem(f"not valid Python: {error.msg}", f"{source}:{error.lineno}")]) from None
    except (OSError, ValueError) as error:
        raise UserError([Problem(f"cannot be read: {error}", str(source))]) from None


def _statements_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes outside functions and classes, but not those for `__main__` or for types only."""
    for child in ast.iter_child_nodes(node):
        yield child
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and _is_skipped(child.test):
            for other in child.orelse:
                yield other
                yield from _statements_at_import(other)
            continue
        yield from _statements_at_import(child)


def _is_skipped(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING", "__name__ == '__main__'")


def _definition(top: list[ast.AST]) -> int | None:
    """Return the line that defines or imports `add_arguments`; None if there is none."""
    for node in top:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            name, line = node.name, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name, line = node.id, node.lineno
        elif isinstance(node, ast.alias):
            name, line = node.asname or node.name, node.lineno
        else:
            continue
        if name == ADD_ARGUMENTS:
            return line
    return None


def _own_parts(tree: ast.Module, source: Path) -> frozenset[str]:
    """Return the parts that the program passes to `run`; all if it drives the engine without it."""
    names = _names_of_run(tree)
    nodes = (node for node in ast.walk(tree) if isinstance(node, ast.Call))
    calls = [call for call in nodes if ast.unparse(call.func) in names]
    keywords = [keyword for call in calls for keyword in call.keywords]
    for keyword in keywords:
        if keyword.arg is None:
            what = "the program's parts cannot be read from this call without running it"
            hint = "pass each by name, such as `datasets=datasets`"
            raise UserError([Problem(what, f"{source}:{keyword.value.lineno}", hint)])
    given = {keyword.arg for keyword in keywords if ast.unparse(keyword.value) != "None"}
    return frozenset(part for part in PARTS if part in given or not calls)


def _names_of_run(tree: ast.Module) -> set[str]:
    """Return the names by which a file calls `megatron.flagscale.program.run`, or the `train` below it."""
    functions = [f"{_FRAME}.run", f"{_FRAME}.train"]
    names = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        for alias in node.names:
            path = f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
            inside = (full.removeprefix(path) for full in functions if f"{full}.".startswith(f"{path}."))
            names |= {(alias.asname or alias.name) + rest for rest in inside}
    return names


def _refuse_engine_imports(top: list[ast.AST], source: Path) -> None:
    problems = []
    for node in top:
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        if engine := next(filter(is_engine, names), None):
            assert isinstance(node, ast.stmt)
            what = f"imports `{engine.partition('.')[0]}` at the top of a program with `{ADD_ARGUMENTS}`"
            hint = "move this line into the functions that use it: the launcher does not import engines"
            problems.append(Problem(what, f"{source}:{node.lineno}", hint))
    if problems:
        raise UserError(problems)


def _refuse_names(
    arguments: Mapping[str, Option], catalog: Catalog, tree: ast.Module, source: Path, line: int
) -> None:
    """Refuse names that the engine or FlagScale uses, and those of secrets, which argv would show."""
    dests = {option.dest: option.name for option in catalog.options.values()}
    problems = []
    for name, option in arguments.items():
        key = name.replace("-", "_")
        used = name if name in catalog.options else dests.get(option.dest)
        what, hint = "", "give it another name"
        if used is not None:
            what = f"`--{name}` clashes with `--{used}` of {catalog.engine} {catalog.version}"
        elif key in TASK or key in KEYS:
            what = f"`--{name}` clashes with the key `{key}`, which FlagScale reads itself"
        elif is_secret(key) and option.type not in ("int", "float", "bool"):
            what = f"`--{name}` is the name of a secret, and arguments are visible"
            hint = "read it from the environment (experiment.envs), or give it another name"
        if what:
            constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant))
            written = (node.lineno for node in constants if node.value == f"--{name}")
            problems.append(Problem(what, f"{source}:{next(written, line)}", hint))
    if problems:
        raise UserError(problems)
