"""Translate command lines for Hydra, and Hydra's own errors for the user."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from flagscale.config import hydra_keys
from flagscale.config.grammar import LONGEST_NAME, choice_problem, override_problem, too_much
from flagscale.errors import Problem, first_line, nearest

COMPLAINTS = (HydraException, OmegaConfBaseException)
"""The exceptions that Hydra raises for a user's mistake in the command line or the files."""

SWEEP_FLAGS = ("-m", "--multirun")
_PATH_FLAGS = ("--config-path", "-cp", "--config-dir", "-cd")
_VALUE_FLAGS = (
    *_PATH_FLAGS,
    "--config-name",
    "-cn",
    "--package",
    "-p",
    "--cfg",
    "-c",
    "--experimental-rerun",
)
_INFO_FLAGS = ("--info", "-i")
_KEY = re.compile(r"(?!hydra\.)([A-Za-z_][\w-]*(?:\.[\w-]+)*)=")


def as_hydra_takes_it(words: Sequence[str]) -> list[str]:
    """Return a command line whose paths and overrides Hydra understands as the user means them."""
    words = _flags_first(_absolute_config_path(words))
    groups = _groups(config_folder(words))
    return [_set_or_add(word, groups) for word in words]


def _flags_first(words: Sequence[str]) -> list[str]:
    """Move flags before the overrides: Hydra's parser does not take them between two.

    A flag without its value goes last, for `early_problems`: the parser would read an override as its value.
    """
    flags: list[str] = []
    overrides: list[str] = []
    lacking: list[str] = []
    for word, after in zip(words, [*words[1:], "="], strict=True):
        if word in _INFO_FLAGS and _is_override(after):
            flags.append(f"{word}=all")
        elif word in _VALUE_FLAGS and _is_override(after):
            lacking.append(word)
        else:
            (overrides if _is_override(word) else flags).append(word)
    return [*flags, *overrides, *lacking]


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


def early_problems(words: Sequence[str]) -> list[Problem]:
    """Return the mistakes of a command line for which Hydra has no message that names them."""
    overrides, folder = _overrides(words), config_folder(words)
    if words and words[-1] in _VALUE_FLAGS:
        return [Problem("this flag needs a value", f"command line: {words[-1]}")]
    if folder and os.path.isdir(folder) and not os.access(folder, os.R_OK | os.X_OK):
        return [Problem("the folder cannot be read: Permission denied", os.path.relpath(folder))]
    found = [
        Problem(what, f"command line: {_key(word)[:_SHOWN]}")
        for word in overrides
        if (what := too_much(word))
    ]
    found += [
        Problem(f"a name of a file has at most {LONGEST_NAME} characters", f"command line: {word[:_SHOWN]}")
        for word in words
        if not _is_override(word) and max(map(len, word.split("/"))) > LONGEST_NAME
    ]
    if found:
        return found
    groups = ["", *_groups(folder)]
    choices = [
        word
        for word in overrides
        if _key(word).partition("@")[0] in groups or _key(word).startswith("hydra/")
    ]
    chosen = map(choice_problem, choices)
    return [*filter(None, chosen), *hydra_keys.override_problems(overrides)]


def _key(override: str) -> str:
    return override.lstrip("+~").partition("=")[0]


def _groups(folder: Path | None) -> list[str]:
    """Return the groups of files in a folder, if it can be read."""
    if folder is None or not os.access(folder, os.R_OK | os.X_OK) or not os.path.isdir(folder):
        return []
    return [path.name for path in folder.iterdir() if os.path.isdir(path)]


_SHOWN = 100
"""Characters of a key in a message about a word that is too long."""


def unreadable(words: Sequence[str]) -> list[Problem]:
    """Return the problem of each override that Hydra's grammar cannot read."""
    found = map(override_problem, dict.fromkeys(_overrides(words)))
    return [problem for problem in found if problem]


def _overrides(words: Sequence[str]) -> list[str]:
    return [word for word in words if _is_override(word)]


def problems_of(error: Exception | None, words: Sequence[str]) -> list[Problem]:
    """Return one of the `COMPLAINTS` about a translated command line; of overrides, all that are wrong."""
    if isinstance(error, OverrideParseException):
        overrides = [error.override, *_overrides(words)]
        return [problem for problem in map(override_problem, dict.fromkeys(overrides)) if problem]
    return [_problem_of(error, words)]


_OVERRIDE = re.compile(r"override ([^\s=]+)(=.*)?")


def _problem_of(error: Exception | None, words: Sequence[str]) -> Problem:
    folder = config_folder(words)
    cause = error.__cause__ if error else None
    if isinstance(cause, OmegaConfBaseException) and (merged := _OVERRIDE.search(str(error))):
        return Problem(first_line(cause), f"command line: {_key(merged[1])}")
    if isinstance(cause, OmegaConfBaseException) and not str(error):
        error = cause
    if isinstance(error, OmegaConfBaseException):
        return Problem(first_line(error), error.full_key or "")
    # After an empty line come Hydra's search path and advice on its own switches.
    what, *lines = str(error).partition("\n\n")[0].replace("'++", "'").splitlines()
    more = "\n    ".join(line.strip() for line in lines)
    if isinstance(error, MissingConfigException):
        wanted = Path(error.missing_cfg_file or "").stem
        beside = [path.stem for path in folder.glob("*.yaml")] if folder else []
        if not wanted:
            return Problem(what, "command line: --config-path", more)
        return Problem(what, hint=nearest(wanted, error.options or beside) or more)
    return Problem(what, "" if "override" in what or not folder else os.path.relpath(folder), more)
