"""A reader that has seen enough (`... | head`) ends every command without a message."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flagscale.streams import quietly

ROOT = Path(__file__).parents[2]
RUN = [sys.executable, str(ROOT / "run.py")]
FLAGSCALE = [sys.executable, "-c", "import sys; from flagscale.cli import main; sys.exit(main())"]
TOOL = str(ROOT / "tools" / "plot_loss.py")


def unread(command: list[str], stream: str = "stdout") -> tuple[int, str]:
    """Run a command, one of whose streams nobody reads; return its exit code and the other stream."""
    reader, writer = os.pipe()
    os.close(reader)
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: writer}
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environ, text=True, **streams)  # type: ignore[call-overload]
    os.close(writer)
    out, error = process.communicate(timeout=60)
    return process.returncode, (error if stream == "stdout" else out) or ""


@pytest.mark.parametrize(
    ("more", "codes"),
    [
        (["--help"], {0}),
        (["action=dryrun"], {0}),
        (["-m", "action=dryrun", "experiment.exp_dir=a,b"], {0}),
        (["action=query"], {3}),
        (["action=query", "output=json"], {0, 3}),
        (["action=logs"], {3}),
        (["action=stop"], {0}),
        (["action=check"], {0, 1}),
    ],
)
def test_every_action(more: list[str], codes: set[int], words: list[str]) -> None:
    code, error = unread([*RUN, *words, *more])
    assert code in codes
    lines = [line for line in error.splitlines() if not line.startswith(("nothing was started in", "note: "))]
    assert lines == []


@pytest.mark.parametrize(
    "command",
    [
        [*RUN, "--help"],
        [*RUN, "--version"],
        [*RUN, "--hydra-help"],
        [*FLAGSCALE, "tools"],
        [*FLAGSCALE, "examples"],
        [*FLAGSCALE, "examples", "--help"],
        [*FLAGSCALE, "tools/plot_loss.py", "--help"],
        [sys.executable, TOOL, "--help"],
    ],
    ids=lambda command: " ".join(command[2:][-2:])[-30:],
)
def test_without_an_experiment(command: list[str]) -> None:
    assert unread(command) == (0, "")


def test_messages_that_nobody_reads_keep_the_exit_code(words: list[str]) -> None:
    assert unread([*RUN, *words, "action=dryrun", "train.model.num_layer=1"], "stderr") == (2, "")
    assert unread([*RUN, "action=run"], "stderr") == (2, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_streams_that_are_closed_from_the_start(closed: str, words: list[str]) -> None:
    line = f'exec "$@" {closed}'
    command = ["bash", "-c", line, "bash", *RUN, *words, "action=dryrun"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environ)
    assert done.returncode == 0
    assert done.stderr == ""
    assert ("exec " in done.stdout) == (">&-" not in closed.replace("2>&-", ""))


def test_another_broken_pipe_is_a_bug_and_keeps_its_traceback() -> None:
    def fail() -> int:
        raise BrokenPipeError("a socket")

    with pytest.raises(BrokenPipeError, match="a socket"):
        quietly(fail)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "more", [["--help"], ["action=dryrun"], ["--cfg=job"], ["action=query", "output=json"]]
)
def test_a_full_disk_is_one_line(more: list[str], unbuffered: str, words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*RUN, *more[:1], *words, *more[1:]] if more[0].startswith("--") else [*RUN, *words, *more],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            timeout=60,
            check=False,
        )
    assert done.returncode != 0
    assert "error: cannot write the output: No space left on device\n" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("encoding", "shown"), [("utf-8", b"caf\xe9 \xe6\xbc\xa2"), ("latin-1", b"caf\\udce9 \\u6f22")]
)
def test_names_that_the_terminal_cannot_show(encoding: str, shown: bytes, words: list[str]) -> None:
    done = subprocess.run(
        [os.fsencode(word) for word in [*RUN, *words, "experiment.exp_dir='caf\udce9 漢'"]],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        timeout=60,
        check=True,
    )
    assert shown in done.stdout
