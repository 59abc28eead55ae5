"""One trial: a command on a project, and what every command promises whatever the project is."""

from __future__ import annotations

import gc
import io
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from flagscale.cli import main
from tests.fuzz.projects import Project

LIMIT = 60
"""Seconds after which a command counts as hanging."""
_RUN = Path(__file__).parents[2] / "run.py"


@dataclass(frozen=True)
class Outcome:
    """The result of a command."""

    code: int
    printed: str
    seconds: float
    written: tuple[str, ...]
    """Paths that the command created, changed or deleted."""


class Hang(BaseException):
    """A command took longer than `LIMIT`."""


def dryrun(project: Project) -> Outcome:
    """Perform `dryrun` in this process."""
    with _written(project) as folder:
        out, err = (_stream(errors) for errors in ("strict", "backslashreplace"))
        before, start = _listing(folder), time.perf_counter()
        with _as_new(folder), _limited(), redirect_stdout(out), redirect_stderr(err):
            code = main(_words(project, "dryrun"))
        seconds = time.perf_counter() - start
        printed = "".join(_content(stream) for stream in (out, err))
        return Outcome(code, printed, seconds, tuple(_listing(folder) ^ before))


def command(project: Project, action: str) -> Outcome:
    """Perform an action as a user does."""
    with _written(project) as folder:
        before, start = _listing(folder), time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(_RUN), *_words(project, action)],
            cwd=folder,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )
        printed = (done.stdout + done.stderr).decode(errors="replace")
        seconds = time.perf_counter() - start
        return Outcome(done.returncode, printed, seconds, tuple(_listing(folder) ^ before))


def broken_promise(outcome: Outcome, codes: tuple[int, ...] = (0, 2)) -> str:
    """Return which promise a command has broken; "" if none."""
    if "Traceback (most recent call last)" in outcome.printed:
        return f"a traceback:\n{outcome.printed}"
    if outcome.code not in codes:
        return f"exit code {outcome.code}:\n{outcome.printed}"
    if outcome.written:
        return f"written: {sorted(outcome.written)}"
    problems = re.findall(r"^- (.*)", outcome.printed, re.MULTILINE) if outcome.code == 2 else []
    nameless = next((problem for problem in problems if not _PLACE.match(problem)), None)
    return f"no place is named: {nameless}" if nameless else ""


_PLACE = re.compile(r"command line: |\S+(:\d+)?: |.*[`'].+[`']|.* \(\d+ places\)$|no action given")
"""How a problem begins: with a file, perhaps with a line, or with a key; or it quotes what is missing, or its
places follow.
"""


def _words(project: Project, action: str) -> list[str]:
    return ["--config-path", "conf", "--config-name", "config", f"action={action}", *project.words]


@contextmanager
def _written(project: Project) -> Iterator[Path]:
    with TemporaryDirectory(prefix="slips-") as name:
        project.write(Path(name))
        yield Path(name)


def _listing(folder: Path) -> set[str]:
    """Return the path of everything in a folder, with the time of its last change."""
    return {f"{path.relative_to(folder)} {path.lstat().st_mtime_ns}" for path in folder.rglob("*")}


def _stream(errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors)


def _content(stream: io.TextIOWrapper) -> str:
    stream.flush()
    assert isinstance(stream.buffer, io.BytesIO)
    return stream.buffer.getvalue().decode(errors="replace")


@contextmanager
def _as_new(folder: Path) -> Iterator[None]:
    """Behave like a process that starts in a folder, and restore this one's state."""
    here, argv, environ, handlers = Path.cwd(), sys.argv, dict(os.environ), logging._handlerList
    os.chdir(folder)
    sys.argv = ["run.py"]
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    logging._handlerList = []
    gc.disable()  # a fifth of the time
    try:
        yield
    finally:
        gc.enable()
        os.chdir(here)
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environ)
        logging._handlerList = handlers


@contextmanager
def _limited() -> Iterator[None]:
    def hang(number: int, frame: FrameType | None) -> None:
        raise Hang(f"longer than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
