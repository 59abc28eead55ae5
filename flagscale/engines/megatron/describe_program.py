"""The child process that imports a training program and prints the arguments it adds, as JSON.

`python -m flagscale.engines.megatron.describe_program ENTRYPOINT FILE SECONDS`; no engine can be imported.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib.abc
import inspect
import json
import os
import runpy
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import Any

from flagscale.config.catalog import describe_actions
from flagscale.config.entrypoint import is_engine

_LIBRARIES = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_LAUNCHER = Path(__file__).resolve().parents[2]


class _NoEngine(importlib.abc.MetaPathFinder):
    """Refuse to import an engine, even one that the program imports indirectly."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if is_engine(name) and name != "megatron":
            raise ImportError("not imported by the launcher", name=name)


def describe(entrypoint: str, source: str) -> dict[str, Any]:
    """Return `arguments` (see `describe_actions`) and `files` (the user's files that were imported)."""
    # Import it as a process that the trainer spawns does.
    if entrypoint.endswith(".py"):
        sys.path.insert(0, str(Path(source).resolve().parent))
        program = runpy.run_path(source, run_name="__mp_main__")
    else:
        sys.path.insert(0, os.getcwd())
        program = runpy.run_module(entrypoint, run_name="__mp_main__", alter_sys=True)
    add_arguments = program.get("add_arguments")
    if not callable(add_arguments) or inspect.iscoroutinefunction(add_arguments):
        found = "an `async` function" if callable(add_arguments) else "no function"
        raise ValueError(f"`add_arguments` is {found} after the import; define it at the top with `def`")
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    add_arguments(parser)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            raise ValueError("`add_subparsers` is not supported; use an argument with `choices`")
        if not any(option.startswith("--") for option in action.option_strings):
            raise ValueError(f"the argument `{action.dest}` needs a name that begins with `--`")
    # In a rank the parser is the engine's, whose defaults the launcher would not see change.
    for name in sorted(parser._defaults.keys() - {action.dest for action in parser._actions}):
        what = f"`set_defaults` names `{name}`, which is not one of the program's own arguments"
        raise ValueError(f"{what}; set its key in the task file")
    files = {str(Path(source).resolve()), *_files_of_the_user()}
    return {"arguments": describe_actions(parser._actions), "files": sorted(files)}


def _files_of_the_user() -> set[str]:
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    found = {Path(file).resolve() for file in files if file and file.endswith(".py")}
    return {
        str(file)
        for file in found
        if not file.is_relative_to(_LAUNCHER) and not str(file).startswith(_LIBRARIES)
    }


def failure(error: BaseException, source: str) -> dict[str, Any]:
    """Return the error with the last line of the program's own file that led to it."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == source]
    what, hint = f"{type(error).__name__}: {error}", ""
    if isinstance(error, ImportError) and is_engine(error.name or ""):
        what = f"leads to an import of `{error.name}`"
        hint = "import it in the functions that use it: the launcher does not import engines"
    elif isinstance(error, SystemExit):
        what, hint = "ends the process when it is imported", 'put it under `if __name__ == "__main__":`'
    elif isinstance(error, ValueError) and not lines:
        what = str(error)
    return {"error": what, "line": lines[-1] if lines else None, "hint": hint}


def main() -> None:
    """Print the answer to the original standard output; the program's own output goes to stderr."""
    entrypoint, source, seconds = sys.argv[1:]
    faulthandler.dump_traceback_later(float(seconds), exit=True)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.argv[:] = [source]
    sys.meta_path.insert(0, _NoEngine())
    try:
        answer = describe(entrypoint, source)
    except BaseException as error:
        answer = failure(error, source)
    json.dump(answer, out)
    out.flush()
    os._exit(0)  # at once, even if the program has started threads


if __name__ == "__main__":
    main()
