"""One trial: a command on a project in this process, and what every command promises of any project."""

from __future__ import annotations

import io
import logging
import os
import re
import signal
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


@dataclass(frozen=True)
class Outcome:
    code: int
    printed: str
    seconds: float
    written: frozenset[str]


class Hang(BaseException):
    """A command took longer than `LIMIT` seconds."""


def command(project: Project) -> list[str]:
    first = ["--config-path", "conf", "--config-name", "config", "action=dryrun"]
    return [*first, *project.words]


def run(project: Project) -> Outcome:
    """Perform `dryrun` on a project in a new folder."""
    with TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        project.write(folder)
        before = _listing(folder)
        out, err = _stream("strict"), _stream("backslashreplace")
        start = time.perf_counter()
        with _as_new(folder), _limited(), redirect_stdout(out), redirect_stderr(err):
            code = main(command(project))
        seconds = time.perf_counter() - start
        texts = [
            stream.buffer.getvalue().decode(errors="replace") for stream in (out, err) if not stream.flush()
        ]
        return Outcome(code, "\n".join(texts), seconds, frozenset(_listing(folder) ^ before))


def complaint(outcome: Outcome) -> str:
    """Return which promise is broken; "" if none is."""
    printed = outcome.printed
    if "Traceback (most recent call last)" in printed:
        frames = re.findall(r'File "([^"]+)", line (\d+), in (\w+)', printed)
        last = next((line for line in reversed(printed.splitlines()) if re.match(r"[\w.]+(:|$)", line)), "")
        ours = next(
            (
                f"{Path(file).name}:{line} {name}"
                for file, line, name in reversed(frames)
                if "/flagscale/" in file
            ),
            "",
        )
        return f"a traceback: {last[:100]} @ {ours}"
    if outcome.code not in (0, 2):
        return f"exit code {outcome.code}"
    if outcome.written:
        return f"written: {sorted(outcome.written)}"
    problems = re.findall(r"^- (.*)", printed, re.MULTILINE) if outcome.code == 2 else []
    nameless = [problem for problem in problems if not _PLACE.match(problem)]
    return f"no place is named: {nameless[0][:110]}" if nameless else ""


_PLACE = re.compile(
    r"no action given|command line: |/|\S*(\.yaml|hostfile)\b(:\d+)?|[A-Za-z_][\w./@-]*: |.*`[^`]+`|.*'[^']+'"
)


def _listing(folder: Path) -> set[str]:
    return {
        f"{path.relative_to(folder)} {path.lstat().st_mtime_ns if not path.is_dir() else ''}"
        for path in folder.rglob("*")
    }


def _stream(errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors)


@contextmanager
def _as_new(folder: Path) -> Iterator[None]:
    """Behave like a process that starts in a folder, and restore this one's state."""
    here, argv, environ, handlers = Path.cwd(), sys.argv, dict(os.environ), logging._handlerList  # type: ignore[attr-defined]
    os.chdir(folder)
    sys.argv = ["run.py"]
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    logging._handlerList = []  # type: ignore[attr-defined]
    try:
        yield
    finally:
        os.chdir(here)
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environ)
        logging._handlerList = handlers  # type: ignore[attr-defined]


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
