"""Run Slurm's programs, with a time limit for each: none of them may keep a command of ours waiting.

Slurm's clients wait for a long time by themselves: 9 s if the controller is down, 60 s without a slurm.conf
(22.05).
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Collection, Mapping
from contextlib import suppress

from flagscale.errors import FlagScaleError

_UNREACHABLE = (
    "Unable to contact slurm controller",
    "Socket timed out",
    "Zero Bytes were transmitted",
    "Connection refused",
    "Connection timed out",
    "Slurm backup controller in standby mode",
    "resolve_ctls_from_dns_srv",
    "Could not establish a configuration source",
)
"""What Slurm's clients print if the controller, or the way to it, does not answer."""
_OWN_FORMATS = ("SQUEUE_", "SINFO_", "SCANCEL_", "SACCT_", "SPRIO_")
"""Variables with which users change what these programs print, or make them ask a question."""
_PREFIXES = ("error: ", "fatal: ", "slurm_load_jobs error: ", "sbatch: ", "srun: ", "scancel: ", "squeue: ")


class SlurmError(FlagScaleError):
    """A program of Slurm did not do what it was asked; `words` are its own words, if it said any."""

    def __init__(self, message: str, words: str = "") -> None:
        super().__init__(message)
        self.words = words


class SlurmMissing(SlurmError):
    """A program of Slurm cannot be run here."""


class SlurmSilent(SlurmError):
    """Slurm's controller did not answer, so nothing is known."""


class SlurmRefused(SlurmError):
    """Slurm answered, and refused."""


def call(
    program: str, *words: str, seconds: float = 5.0, stdin: str = "", without: Collection[str] = ()
) -> str:
    """Run a program of Slurm and return what it prints. Times in its answer are seconds since the epoch.

    Args:
        seconds: after which it is ended.
        stdin: the text of its standard input.
        without: the environment variables that it does not get.

    Raises:
        SlurmMissing: it cannot be run here.
        SlurmSilent: it ran longer than `seconds`, or could not reach the controller.
        SlurmRefused: it ended with another exit code than 0 for any other reason.
    """
    try:
        process = subprocess.Popen(
            [program, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            errors="surrogateescape",
            env=_environment(os.environ, without),
            start_new_session=True,
        )
    except FileNotFoundError:
        hint = "use experiment.runner.type=ssh, or run the command on a login node of the cluster"
        raise SlurmMissing(f"no Slurm here: `{program}` is not installed; {hint}") from None
    except OSError as error:
        raise SlurmMissing(f"`{program}` cannot be run: {error.strerror}") from None
    with process:
        try:
            printed, complaints = process.communicate(stdin, seconds)
        except subprocess.TimeoutExpired:
            _kill(process)
            raise SlurmSilent(f"Slurm did not answer `{program}` within {seconds:g} s") from None
        except BaseException:  # also Ctrl-C, which does not reach another session
            _kill(process)
            raise
    if process.returncode == 0:
        return printed
    said = own_words(complaints) or own_words(printed)
    if process.returncode == -signal.SIGPIPE:
        raise SlurmSilent(f"Slurm's controller closed the connection of `{program}`", said)
    if any(mark in said for mark in _UNREACHABLE):
        raise SlurmSilent(f"Slurm's controller cannot be reached (`{program}`): {said}", said)
    raise SlurmRefused(f"`{program}`: {said or f'exit code {process.returncode}, without a message'}", said)


def own_words(text: str) -> str:
    """Return what a program of Slurm says, on one line and without the names that it puts before it."""
    said: dict[str, None] = {}
    for line in text.splitlines():
        line = line.strip()
        while prefix := next((one for one in _PREFIXES if line.startswith(one)), ""):
            line = line.removeprefix(prefix)
        if line:
            said[line] = None
    return "; ".join(said)


def _environment(environ: Mapping[str, str], without: Collection[str]) -> dict[str, str]:
    """Return the environment in which the answers have a format that can be read."""
    kept = {
        name: value
        for name, value in environ.items()
        if name not in without and not name.startswith(_OWN_FORMATS)
    }
    return {**kept, "LC_ALL": "C", "SLURM_TIME_FORMAT": "%s"}


def _kill(process: subprocess.Popen[str]) -> None:
    """Kill a program with its children: at some sites these names are scripts around Slurm's programs."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
