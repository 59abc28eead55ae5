"""What FlagScale brings besides its packages: examples to copy, and tools to run.

In a clone both are folders at its root. A wheel has them in `flagscale/share`, where `setup.py` puts them,
and its user types `flagscale tools/NAME.py` where the documentation says `python tools/NAME.py`.
"""

from __future__ import annotations

import ast
import os
import shutil
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path

from flagscale.errors import Problem, UserError, nearest

_SHARE = Path(__file__).parent / "share"
ROOT = _SHARE if _SHARE.is_dir() else Path(__file__).resolve().parents[1]
"""The folder that holds `examples/` and `tools/`."""
_IS_PROGRAM = 'if __name__ == "__main__":'


def main(words: Sequence[str]) -> int:
    """Perform `examples ...`, `tools` or `tools/NAME.py ...`; return the exit code (2: a user's mistake)."""
    name, *rest = words
    try:
        if name == "examples":
            return _examples(rest)
        return _list_tools() if name == "tools" else _run(name, rest)
    except UserError as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        return error.exit_code


def copy_example(name: str, folder: Path) -> list[Path]:
    """Copy an example to `folder/name` and return the new files.

    Raises:
        UserError: no such example, or the target exists: files of a user are never overwritten.
    """
    source, target = ROOT / "examples" / name, folder / name
    if name not in example_names():
        raise UserError([Problem(f"no example `{name}`", hint=nearest(name, example_names()))])
    if os.path.lexists(target):
        raise UserError([Problem("already exists", str(target), "name another folder: --to FOLDER")])
    try:
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise UserError([Problem(f"cannot copy the example: {error}", str(target))]) from None
    return sorted(path for path in target.rglob("*") if path.is_file())


def example_names() -> list[str]:
    """Return the names of all examples."""
    return sorted(path.name for path in (ROOT / "examples").iterdir() if (path / "conf").is_dir())


def tool_names() -> list[str]:
    """Return the tools as a user types them: `tools/datasets/demo.py`."""
    files = sorted((ROOT / "tools").rglob("*.py"))
    return [path.relative_to(ROOT).as_posix() for path in files if _IS_PROGRAM in path.read_text("utf-8")]


def _examples(words: Sequence[str]) -> int:
    about = f"Copy an example into FOLDER/NAME. Examples: {', '.join(example_names())}."
    parser = ArgumentParser("flagscale examples", description=about)
    parser.add_argument("name", metavar="NAME", nargs="?", help="the example; without it, list all")
    parser.add_argument("--to", type=Path, default=Path("examples"), metavar="FOLDER", help="(%(default)s)")
    try:
        arguments = parser.parse_args(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    if arguments.name is None:
        print(*example_names(), "", "copy one:  flagscale examples NAME [--to FOLDER]", sep="\n")
        return 0
    copied = copy_example(arguments.name, arguments.to)
    conf = arguments.to / arguments.name / "conf"
    path = conf if conf.is_absolute() else f"./{conf}"
    print(*copied, "", sep="\n")
    print(
        f"""{len(copied)} files copied. Next, prepare the demo's data and check its experiment:
  flagscale tools/datasets/demo.py
  flagscale --config-path {path} --config-name config action=dryrun
Experiments: {", ".join(sorted(path.stem for path in conf.glob("*.yaml")))}"""
    )
    return 0


def _list_tools() -> int:
    names = tool_names()
    width = max(map(len, names))
    for name in names:
        text = ast.get_docstring(ast.parse((ROOT / name).read_text("utf-8"))) or ""
        print(f"{name:{width}}  {text.partition(chr(10))[0]}")
    print("\nrun one:  flagscale tools/NAME.py [ARGUMENT ...]      (--help for its arguments)")
    return 0


def _run(name: str, words: Sequence[str]) -> int:
    """Replace this process by a tool, as `python tools/NAME.py` would start it."""
    if name not in tool_names():
        raise UserError([Problem(f"no such tool: `{name}`", hint=nearest(name, tool_names()))])
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, str(ROOT / name), *words])
