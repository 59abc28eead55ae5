"""Write conversations about Python's standard library: `docstrings.py --output docstrings.jsonl`.

Each one asks what a public function or class is, and the answer is the first paragraph of its docstring. The
text depends on the Python that runs this tool; it is under the Python Software Foundation's licence.
"""

import importlib
import inspect
import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from pathlib import Path

if not __package__:  # run as a file: import from the repository's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from flagscale.errors import UserError
from flagscale.files import write_atomic
from tools.command import run

MODULES = (
    *("argparse", "base64", "bisect", "calendar", "collections", "colorsys", "contextlib", "copy", "csv"),
    *("difflib", "filecmp", "fnmatch", "fractions", "functools", "getpass", "glob", "gzip", "heapq", "html"),
    *(
        "inspect",
        "io",
        "ipaddress",
        "json",
        "linecache",
        "mimetypes",
        "operator",
        "os.path",
        "pathlib",
        "pickle",
    ),
    *("pprint", "random", "sched", "shlex", "shutil", "statistics", "string", "tempfile", "textwrap"),
    *("threading", "timeit", "tokenize", "traceback", "types", "urllib.parse", "uuid", "weakref", "zipfile"),
)
SHORTEST, LONGEST = 30, 300
"""Characters of an answer."""


def conversations(modules: Sequence[str] = MODULES) -> Iterator[dict[str, list[dict[str, str]]]]:
    """Yield a conversation, in OpenAI's form, per public function or class that has a docstring."""
    for module in modules:
        for name, meant in sorted(vars(importlib.import_module(module)).items()):
            is_own = getattr(meant, "__module__", None) in (module, f"_{module}", "posixpath")
            if name.startswith("_") or not is_own or not (inspect.isroutine(meant) or inspect.isclass(meant)):
                continue
            answer = " ".join(inspect.cleandoc(meant.__doc__ or "").partition("\n\n")[0].split())
            is_signature = answer.startswith(f"{name}(")
            if SHORTEST <= len(answer) <= LONGEST and answer.isascii() and not is_signature:
                question = f"What is {module}.{name} in Python?"
                yield {
                    "messages": [
                        {"role": "user", "content": question},
                        {"role": "assistant", "content": answer},
                    ]
                }


def main() -> int:
    """Write the conversations from the command line."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, required=True, help="the file to write, in JSON lines")
    parser.add_argument("--overwrite", action="store_true", help="replace the file")
    arguments = parser.parse_args()
    if arguments.output.exists() and not arguments.overwrite:
        raise UserError(f"{arguments.output}: exists already; choose another --output, or --overwrite it")
    lines = [json.dumps(one) for one in conversations()]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(arguments.output, "".join(f"{line}\n" for line in lines))
    print(f"{arguments.output}: {len(lines)} conversations, from Python {sys.version.split()[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
