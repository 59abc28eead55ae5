"""Python programs in forks of a process that has imported an engine, which takes seconds for each start.

That process imports the module at its first program, and ends with the process that asked for it.
"""

from __future__ import annotations

import functools
import gc
import importlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

from flagscale.run.env import import_path
from flagscale_testing.ranks.training import ROOT


def python(imported: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run the command line `python WORDS` in this project's folder, where this module is imported already.

    `words` begin with `-c CODE`, `-m MODULE` or a file.
    """
    server = _server(imported)
    assert server.stdin
    assert server.stdout
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps([folder, *words]), file=server.stdin, flush=True)
        answer = server.stdout.readline()
        assert answer, f"the fork server of {imported} has ended"
        printed, errors = ((Path(folder) / name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(words, int(answer), printed, errors)


@functools.cache
def _server(imported: str) -> subprocess.Popen[str]:
    path = import_path(str(ROOT))
    return subprocess.Popen(
        [sys.executable, "-m", "flagscale_testing.forked_python", imported],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def main(imported: str) -> None:
    """Import the module, then run the program that each line of standard input describes."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the module prints must not mix with our answers
    importlib.import_module(imported)
    gc.collect()
    gc.freeze()  # or the first collection in each fork would copy all of this memory
    for line in sys.stdin:
        folder, *words = json.loads(line)
        if (pid := os.fork()) == 0:
            os._exit(_run(Path(folder), words))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), file=answers, flush=True)


def _run(folder: Path, words: list[str]) -> int:
    """Run the program with its output in two files of the folder; return its exit code."""
    for stream, name in enumerate(("stdout", "stderr"), 1):
        os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY), stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    kind, what = (words[0], words[1]) if words[0] in ("-c", "-m") else ("", words[0])
    sys.argv = [what if kind != "-c" else "-c", *words[2 if kind else 1 :]]
    code: object = 0
    try:
        if kind == "-c":
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        elif kind == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(what, run_name="__main__")
    except SystemExit as ended:
        code = ended.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    main(sys.argv[1])
