"""Translate command lines for Hydra, and Hydra's own errors for the user."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from flagscale.config.defaults_list import line_of_entry
from flagscale.config.documents import read_document
from flagscale.config.flags import (
    asks_for_completion,
    config_folder,
    config_name,
    flag_problems,
    flags_first,
    is_override,
    key_of,
    overrides_in,
)
from flagscale.config.grammar import LONGEST_NAME, choice_problem, override_problem, too_much
from flagscale.errors import Problem, first_line, nearest

COMPLAINTS = (HydraException, OmegaConfBaseException)
"""The exceptions that Hydra raises for a user's mistake in the command line or the files."""

_KEY = re.compile(r"(?!hydra\.)([A-Za-z_][\w-]*(?:\.[\w-]+)*)=")


def as_hydra_takes_it(words: Sequence[str]) -> list[str]:
    """Return a command line whose paths and overrides Hydra understands as the user means them."""
    words = flags_first(words)
    if asks_for_completion(words):
        return words
    groups = _groups(config_folder(words))
    return [_set_or_add(word, groups) for word in words]


def _folder_problems(words: Sequence[str], folder: Path | None) -> list[Problem]:
    """Return what is wrong with the folder of the experiment's file, and with the file's name."""
    if folder is None:
        hint = "add --config-path FOLDER, the folder of the file that --config-name names"
        return [Problem("command line: no folder is given", hint=hint)] if config_name(words) else []
    shown = os.path.relpath(folder)
    if os.path.isfile(folder):
        return [Problem("this is a file, not a folder", shown, _advice(folder.with_suffix("")))]
    if not os.path.isdir(folder):
        return [Problem(f"no such folder: {shown}", "command line: --config-path")]
    if not os.access(folder, os.R_OK | os.X_OK):
        return [Problem("the folder cannot be read: Permission denied", shown)]
    name = config_name(words)
    for file in (folder / name, Path(name)) if "/" in name else ():
        path = Path(f"{file}.yaml")
        # Hydra places its keys below the name of the folder, unless the file says otherwise.
        if os.path.isfile(path) and read_document(path).package is None:
            return [Problem("`--config-name` is the name of a file without its folder", name, _advice(file))]
    return []


def _advice(file: Path) -> str:
    words = shlex.join(["--config-path", os.path.relpath(file.parent), "--config-name", file.name])
    return f"write {words}"


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
    overrides, folder = overrides_in(words), config_folder(words)
    if wrong := [*flag_problems(words)] or _folder_problems(words, folder):
        return wrong
    found = [
        Problem(what, f"command line: {key_of(word)[:_SHOWN]}")
        for word in overrides
        if (what := too_much(word))
    ]
    found += [
        Problem(f"a name of a file has at most {LONGEST_NAME} characters", f"command line: {word[:_SHOWN]}")
        for word in words
        if not is_override(word) and max(map(len, word.split("/"))) > LONGEST_NAME
    ]
    if found:
        return found
    groups = ["", *_groups(folder)]
    choices = [
        word
        for word in overrides
        if key_of(word).partition("@")[0] in groups or key_of(word).startswith("hydra/")
    ]
    found = [*filter(None, map(choice_problem, choices))]
    if any(key_of(word).partition(".")[0] == "hydra" for word in overrides):
        from flagscale.config.hydra_keys import override_problems  # late: it imports pydantic

        found += override_problems(overrides)
    return found


def _groups(folder: Path | None) -> list[str]:
    """Return the groups of files in a folder, if it can be read."""
    if folder is None or not os.access(folder, os.R_OK | os.X_OK) or not os.path.isdir(folder):
        return []
    return [path.name for path in folder.iterdir() if os.path.isdir(path)]


_SHOWN = 100
"""Characters of a key in a message about a word that is too long."""


def unreadable(words: Sequence[str]) -> list[Problem]:
    """Return the problem of each override that Hydra's grammar cannot read."""
    found = map(override_problem, dict.fromkeys(overrides_in(words)))
    return [problem for problem in found if problem]


def problems_of(error: Exception | None, words: Sequence[str]) -> list[Problem]:
    """Return one of the `COMPLAINTS` about a translated command line; of overrides, all that are wrong."""
    if isinstance(error, OverrideParseException):
        overrides = [error.override, *overrides_in(words)]
        return [problem for problem in map(override_problem, dict.fromkeys(overrides)) if problem]
    return [_problem_of(error, words)]


_OVERRIDE = re.compile(r"override ([^\s=]+)(=.*)?")


def _problem_of(error: Exception | None, words: Sequence[str]) -> Problem:
    folder = config_folder(words)
    cause = error.__cause__ if error else None
    if isinstance(cause, OmegaConfBaseException) and (merged := _OVERRIDE.search(str(error))):
        return Problem(first_line(cause), f"command line: {key_of(merged[1])}")
    if isinstance(cause, OmegaConfBaseException) and not str(error):
        error = cause
    if isinstance(error, OmegaConfBaseException):
        return Problem(first_line(error), error.full_key or "")
    if folder and (in_file := _in_file(str(error), words, folder)):
        return in_file
    # After an empty line come Hydra's search path and advice on its own switches.
    what, *lines = str(error).partition("\n\n")[0].replace("'++", "'").splitlines()
    more = "\n    ".join(line.strip() for line in lines)
    if isinstance(error, MissingConfigException):
        wanted = Path(error.missing_cfg_file or "").stem
        return Problem(what, hint=nearest(wanted, _files(folder) if folder else []) or more)
    return Problem(what, "" if "override" in what or not folder else os.path.relpath(folder), more)


_IN_FILE = re.compile(r"In '([^']+)': (Could not (?:find|load) '([^']+)')?")


def _in_file(message: str, words: Sequence[str], folder: Path) -> Problem | None:
    """Return what Hydra says about one file, with its place."""
    found = _IN_FILE.match(message)
    file = folder / f"{found[1]}.yaml" if found else folder
    if not found or not os.path.isfile(file):
        return None
    where = os.path.relpath(file)
    if "Cannot merge DictConfig with ListConfig" in message:
        what = (
            "a list cannot be merged with a group of keys: the same key is one here and the other elsewhere"
        )
        return Problem(what, where)
    if not found[3]:
        return None
    group, _, name = found[3].rpartition("/")
    path = folder / f"{found[3]}.yaml"
    if group and group in (key_of(word).partition("@")[0] for word in words):
        where = f"command line: {group}"
    elif line := line_of_entry(read_document(file).root, name):
        where = f"{where}:{line}"
    what = "this cannot be read as a file" if os.path.lexists(path) else "no such file"
    return Problem(f"{what}: {os.path.relpath(path)}", where, nearest(name, _files(path.parent)))


def _files(folder: Path) -> list[str]:
    return [path.stem for path in folder.glob("*.yaml") if os.path.isfile(path)]
