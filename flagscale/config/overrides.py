"""Translate command lines for Hydra, and Hydra's own errors for the user."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

from flagscale.config.grammar import override_problem
from flagscale.errors import Problem, nearest

COMPLAINTS = (HydraException, OmegaConfBaseException, YAMLError)
"""The exceptions that Hydra raises for a user's mistake in the command line or the files."""

SWEEP_FLAGS = ("-m", "--multirun")
_PATH_FLAGS = ("--config-path", "-cp", "--config-dir", "-cd")
_KEY = re.compile(r"(?!hydra\.)([A-Za-z_][\w-]*(?:\.[\w-]+)*)=")


def as_hydra_takes_it(words: Sequence[str]) -> list[str]:
    """Return a command line whose paths and overrides Hydra understands as the user means them."""
    # Hydra's parser takes flags before the first override or after the last one, but not between two.
    words = sorted(_absolute_config_path(words), key=_is_override)
    folder = config_folder(words)
    groups = [path.name for path in folder.iterdir() if path.is_dir()] if folder and folder.is_dir() else []
    return [_set_or_add(word, groups) for word in words]


def _absolute_config_path(words: Sequence[str]) -> list[str]:
    """Resolve --config-path against the current directory, like every other path that a user types.

    Hydra would look for it beside the module that holds the task function.
    """
    absolute: list[str] = []
    for word in words:
        if absolute and absolute[-1] in _PATH_FLAGS:
            word = f"{absolute.pop()}={word}"
        flag, equals, value = word.partition("=")
        absolute.append(f"{flag}={Path(value).absolute()}" if equals and flag in _PATH_FLAGS else word)
    return absolute


def _is_override(word: str) -> bool:
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def config_folder(words: Sequence[str]) -> Path | None:
    """Return the folder that --config-path names in a translated command line; None if there is none."""
    flags = (word.partition("=") for word in words)
    return next((Path(value) for flag, equals, value in flags if equals and flag in _PATH_FLAGS), None)


def _set_or_add(word: str, groups: Sequence[str]) -> str:
    """Make `a.b=value` set the key whether or not a file has it; `train=demo` chooses a file of a group.

    Hydra requires a `+` for a key that no file has, to catch misspellings. Here every key is checked against
    the known ones, wherever it is written.
    """
    override = word.lstrip("+")
    found = _KEY.match(override)
    return f"++{override}" if found and found[1] not in (*groups, "hydra") else word


def problems_of(error: Exception, words: Sequence[str]) -> list[Problem]:
    """Return one of the `COMPLAINTS` about a translated command line; of overrides, all that are wrong."""
    if isinstance(error, OverrideParseException):
        overrides = (word for word in words if "=" in word and not word.startswith("-"))
        found = map(override_problem, dict.fromkeys((error.override, *overrides)))
        return [problem for problem in found if problem]
    return [_problem_of(error, config_folder(words))]


def _problem_of(error: Exception, folder: Path | None) -> Problem:
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        mark = error.problem_mark
        what = " ".join(filter(None, (error.context, error.problem)))
        return Problem(f"not valid YAML: {what}", f"{os.path.relpath(mark.name)}:{mark.line + 1}")
    if isinstance(error.__cause__, OmegaConfBaseException) and not str(error):
        error = error.__cause__
    if isinstance(error, OmegaConfBaseException):
        return Problem(str(error.msg or error).splitlines()[0], error.full_key or "")
    # After an empty line come Hydra's search path and advice on its own switches.
    what, *lines = str(error).partition("\n\n")[0].replace("'++", "'").splitlines()
    more = "\n    ".join(line.strip() for line in lines)
    if isinstance(error, MissingConfigException):
        wanted = Path(error.missing_cfg_file or "").stem
        beside = [path.stem for path in folder.glob("*.yaml")] if folder else []
        return Problem(what, hint=nearest(wanted, error.options or beside) or more)
    return Problem(what, hint=more)
