"""Calls of Slurm's programs that do not go well, with programs of a few lines in their place."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flagscale.runners.slurm.commands import SlurmMissing, SlurmRefused, SlurmSilent, call

Write = Callable[[str], None]


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Return a function that writes the program `squeue`, which is found first."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def write(text: str) -> None:
        program = tmp_path / "squeue"
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(0o755)

    return write


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_the_answer_is_what_the_program_prints(squeue: Write) -> None:
    squeue('echo "$1 $(cat) $LC_ALL $SLURM_TIME_FORMAT"; echo a warning >&2')
    assert call("squeue", "-h", stdin="asked") == "-h asked C %s\n"


def test_formats_of_the_user_do_not_change_the_answer(squeue: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("SCANCEL_INTERACTIVE", "1")
    squeue('echo "[$SQUEUE_FORMAT$SCANCEL_INTERACTIVE]"')
    assert call("squeue") == "[]\n"


def test_a_program_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmMissing, match="no Slurm here: `sbatch` is not installed; use experiment"):
        call("sbatch")


def test_a_program_that_cannot_be_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    program = tmp_path / "squeue"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o755)
    with pytest.raises(SlurmMissing, match="`squeue` cannot be run: Exec format error"):
        call("squeue")


def test_a_program_that_hangs_is_ended_with_its_children(squeue: Write, tmp_path: Path) -> None:
    # The child ignores what `timeout` would send, and holds the pipe.
    pid = tmp_path / "pid"
    squeue(f"(trap '' TERM INT; echo $BASHPID > {pid}.new; mv {pid}.new {pid}; while :; do sleep 0.1; done)")
    with pytest.raises(SlurmSilent, match="Slurm did not answer `squeue` within 3 s"):
        call("squeue", seconds=3)
    child, deadline = int(pid.read_text()), time.monotonic() + 30
    while is_alive(child):  # it has the signal, but may not have had the processor since
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    "words",
    [
        "slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
        "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
        "slurm_load_jobs error: Socket timed out on send/recv operation",
    ],
)
def test_a_controller_that_does_not_answer_has_not_refused(squeue: Write, words: str) -> None:
    squeue(f'echo "{words}" >&2; exit 1')
    with pytest.raises(SlurmSilent, match=r"cannot be reached \(`squeue`\): \w"):
        call("squeue")


def test_a_refusal_has_the_words_of_slurm(squeue: Write) -> None:
    squeue(
        'echo "sbatch: error: invalid partition specified: mian" >&2; echo "sbatch: error: No" >&2; exit 1'
    )
    with pytest.raises(SlurmRefused) as refused:
        call("squeue")
    assert refused.value.words == "invalid partition specified: mian; No"
    assert str(refused.value) == "`squeue`: invalid partition specified: mian; No"


def test_a_refusal_without_words_has_its_exit_code(squeue: Write) -> None:
    squeue("exit 3")
    with pytest.raises(SlurmRefused, match="exit code 3, without a message"):
        call("squeue")


def test_bytes_that_are_no_text_do_not_break_an_answer(squeue: Write) -> None:
    squeue(r"printf 'JobName=\xff\n'")
    assert os.fsencode(call("squeue")) == b"JobName=\xff\n"
