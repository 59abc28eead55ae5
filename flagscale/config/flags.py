"""Hydra's flags on a command line: each with its value, before the overrides, and with an effect."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from flagscale.errors import Problem

SWEEP_FLAGS = ("-m", "--multirun")
_PATH_FLAGS = ("--config-path", "-cp", "--config-dir", "-cd")
_NAME_FLAGS = ("--config-name", "-cn")
_INFO_FLAGS = ("--info", "-i")
_VALUE_FLAGS = ("--cfg", "-c", "--package", "-p", "--experimental-rerun", *_INFO_FLAGS)
_LONG_FLAGS = (
    *(
        "--help",
        "--hydra-help",
        "--version",
        "--cfg",
        "--resolve",
        "--package",
        "--run",
        "--multirun",
        "--info",
    ),
    *("--shell-completion", "--config-path", "--config-name", "--config-dir", "--experimental-rerun"),
)
_COMPLETION_FLAGS = ("--shell-completion", "-sc")
_COMPLETION = re.compile(r"(install|uninstall|query)=[a-z]+")
_OTHER_WORD = re.compile(r"-|~|.*=")


def flags_first(words: Sequence[str]) -> list[str]:
    """Return a command line with each flag in full, joined with its value, and before the overrides.

    Hydra's parser takes flags before the first override or after the last one, but not between two.
    """
    return sorted(_absolute_config_path(_with_values(words)), key=is_override)


def _with_values(words: Sequence[str]) -> list[str]:
    """Join each flag with its value: a flag without one would take an override for it, even the action."""
    joined: list[str] = []
    for word in map(_in_full, words):
        last = joined[-1] if joined else ""
        takes_a_word = last in (*_NAME_FLAGS, *_VALUE_FLAGS) and not _OTHER_WORD.match(word)
        if last in _PATH_FLAGS or takes_a_word:  # a path may contain `=`
            word = f"{joined.pop()}={word}"
        joined.append(word)
    return [f"{word}=all" if word in _INFO_FLAGS else word for word in joined]


def _in_full(word: str) -> str:
    """Return a word; if it is the beginning of one flag of Hydra's, which Hydra accepts, that flag."""
    name, equals, value = word.partition("=")
    flags = [flag for flag in _LONG_FLAGS if name.startswith("--") and flag.startswith(name)]
    return f"{flags[0]}{equals}{value}" if len(flags) == 1 else word


def _absolute_config_path(words: Sequence[str]) -> list[str]:
    """Resolve --config-path against the current directory, like every other path that a user types.

    Hydra would look for it beside the module that holds the task function.
    """
    parts = (word.partition("=") for word in words)
    return [
        f"{flag}={Path(value).absolute()}" if equals and flag in _PATH_FLAGS else f"{flag}{equals}{value}"
        for flag, equals, value in parts
    ]


def is_override(word: str) -> bool:
    """Return whether a word sets or removes a key, or chooses a file."""
    return not word.startswith("-") and ("=" in word or word.startswith("~"))


def key_of(override: str) -> str:
    """Return the key, or the group of files, that an override is about."""
    return override.partition("=")[0].lstrip("+~")


def overrides_in(words: Sequence[str]) -> list[str]:
    """Return the words of a command line that are no flags."""
    return [word for word in words if is_override(word)]


def asks_for_completion(words: Sequence[str]) -> bool:
    """Return whether a command line is about completion in the shell, and so performs no action."""
    return any(word in _COMPLETION_FLAGS for word in words)


def config_folder(words: Sequence[str]) -> Path | None:
    """Return the folder that --config-path names in a translated command line, else the one of --config-dir;
    None if there is none. The last one counts, as in Hydra.
    """
    path, directory = _values(words, _PATH_FLAGS[:2]), _values(words, _PATH_FLAGS[2:])
    return next((Path(value) for value in reversed([*directory, *path])), None)


def _values(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return the values of a flag in a translated command line; `names` is its two forms."""
    flags = (word.partition("=") for word in words)
    return [value for flag, equals, value in flags if equals and flag in names]


def config_name(words: Sequence[str]) -> str:
    """Return the name of the experiment's file in a translated command line, "" if there is none."""
    return next(reversed(_values(words, _NAME_FLAGS)), "").removesuffix(".yaml")


def sole_experiment(words: Sequence[str]) -> tuple[str, str] | None:
    """Return folder and name of the experiment if a translated command line has no other flags, and sets no
    key of Hydra's own; else None.
    """
    folders, names = _values(words, _PATH_FLAGS[:2]), _values(words, _NAME_FLAGS)
    others = [word for word in words if not is_override(word) or re.match("hydra[./=@]", key_of(word) + "=")]
    is_sole = len(folders) == len(names) == 1 and len(others) == 2
    return (folders[0], names[0]) if is_sole else None


def flag_problems(words: Sequence[str]) -> Iterator[Problem]:
    """Yield every flag of a translated command line that lacks its value, or has no effect."""
    flags = {word.partition("=")[0] for word in words}
    if asks_for_completion(words) and not any(map(_COMPLETION.fullmatch, words)):
        hint = 'for example: eval "$(python run.py --shell-completion install=bash)"'
        yield Problem("give install=SHELL or uninstall=SHELL", "command line: --shell-completion", hint)
    for word in words:
        if asks_for_completion(words) and is_override(word) and not _COMPLETION.fullmatch(word):
            yield Problem("this has no effect with --shell-completion", f"command line: {word}", "remove it")
        flag = word.partition("=")[0]
        if word in (*_PATH_FLAGS, *_NAME_FLAGS, *_VALUE_FLAGS):
            yield Problem("this flag needs a value", f"command line: {word}")
        elif flag in ("--resolve", "--package", "-p") and not {"--cfg", "-c"} & flags:
            yield Problem("this flag has no effect without --cfg", f"command line: {flag}")
