"""The lines of an SSH configuration that apply to a host: `Host`, `Match`, `Include` as in OpenSSH."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import translate
from functools import cache
from glob import glob
from pathlib import Path

from flagscale.remote.pipe import Unreachable

HINT = "install OpenSSH's client (`ssh`), or remove it"
_DEEPEST = 16
"""The maximum depth of files that include files, as in OpenSSH."""
_WORD = re.compile(r"""(?:\\[\\"' ]|"(?:\\[\\"']|[^"])*"|'(?:\\[\\"']|[^'])*'|[^\s"'])+""")
_QUOTED = re.compile(r"""\\([\\"' ])|"((?:\\[\\"']|[^"])*)"|'((?:\\[\\"']|[^'])*)'""")


class ConfigError(Unreachable):
    """A configuration cannot be read, or needs what only OpenSSH can do; the message says where."""


class Line:
    """One line: the name of its option as it was written, its value, and its place, FILE:NUMBER."""

    def __init__(self, text: str, where: str) -> None:
        self.name, self.value = [*re.split(r"\s*=\s*|\s+", text, maxsplit=1), ""][:2]
        self.option = self.name.lower()
        self.where = where

    def words(self) -> list[str]:
        """Return the words of the value, without quotes and comment."""
        found, text = [], self.value
        while text and not text.startswith("#"):
            word = _WORD.match(text)
            if not word:
                raise ConfigError(f"{self.where}: a quotation does not end")
            found.append(_QUOTED.sub(_unquoted, word[0]))
            text = text[word.end() :].lstrip()
        return found

    def word(self) -> str:
        """Return the only word of the value."""
        words = self.words()
        if len(words) != 1:
            raise ConfigError(f"{self.where}: `{self.name}` needs one value")
        return words[0]

    def is_none(self) -> bool:
        """Return whether the value is `none`, in whatever case it is written."""
        return self.value.lower() == "none"

    def expand(self, text: str, tokens: Mapping[str, str]) -> str:
        """Return a text of this line with its `%` tokens replaced."""

        def value(found: re.Match[str]) -> str:
            if found[1] not in tokens:
                raise ConfigError(f"{self.where}: the token `{found[0]}` is not supported; {HINT}")
            return tokens[found[1]]

        return re.sub("%(.?)", value, text)


def _unquoted(part: re.Match[str]) -> str:
    escaped, *quoted = part.groups()
    return escaped or re.sub(r"""\\([\\"'])""", r"\1", next((text for text in quoted if text), ""))


class Reading:
    """What the files say about one host."""

    def __init__(self, host: str, user: str, local_user: str) -> None:
        self.found: dict[str, Line] = {}
        """The first line of each option; of `ProxyJump` and `ProxyCommand`, only whichever comes first."""
        self.identities: dict[str, Line] = {}
        """Every `IdentityFile`, by its value."""
        self._original = self._host = host
        self._user, self._local_user = user, local_user
        self._is_final = self._wants_final = False

    def read(self, files: Sequence[Path]) -> None:
        """Read all files, and once more, as `ssh` does, if there is a `Match final`. Raises ConfigError."""
        self._read_all(files)
        if self._wants_final:
            self._host, self._is_final = self.address(), True
            self._read_all(files)

    def address(self) -> str:
        """Return the name or address to connect to, as far as it is known."""
        if self._is_final or "hostname" not in self.found:
            return self._host
        line = self.found["hostname"]
        return line.expand(line.word(), {"%": "%", "h": self._host})

    def _read_all(self, files: Sequence[Path]) -> None:
        for path in files:
            if os.path.isfile(path):
                self._read(path, path.parent, True, 0)

    def _read(self, path: Path, folder: Path, is_active: bool, depth: int) -> None:
        if depth > _DEEPEST:
            raise ConfigError(f"{path}: files include each other more than {_DEEPEST} deep")
        may_be_active = is_active
        for line in _lines_of(path):
            match line.option:
                case "host":
                    is_active = may_be_active and fits(line.words(), self._host)
                case "match":
                    is_active = self._meets(line, may_be_active)
                case "include":
                    for name in line.words():
                        for found in _included(name, folder):
                            self._read(found, folder, is_active, depth + 1)
                case "identityfile" if is_active:
                    self.identities.setdefault(line.value, line)
                case _ if is_active:
                    self._set(line)

    def _set(self, line: Line) -> None:
        """Keep the first line of an option; `ProxyJump` and `ProxyCommand` prevent each other."""
        jump = self.found.get("proxyjump")
        is_late = (line.option == "proxyjump" and "proxycommand" in self.found) or (
            line.option == "proxycommand" and jump is not None and not jump.is_none()
        )
        if not is_late:
            self.found.setdefault(line.option, line)

    def _meets(self, line: Line, may_be_active: bool) -> bool:
        """Return whether a `Match` applies. Raises ConfigError if that depends on what is not known here."""
        tests: dict[str, Callable[[], str]] = {
            "host": self.address,
            "originalhost": lambda: self._original,
            "user": self._current_user,
            "localuser": lambda: self._local_user,
        }
        words, applies = line.words(), may_be_active
        if not words:
            raise ConfigError(f"{line.where}: `{line.name}` needs a condition")
        while words:
            name, _, value = words.pop(0).partition("=")
            criterion = name.removeprefix("!").lower()
            if criterion == "final":
                self._wants_final = True  # even if another criterion fails
            if criterion in ("all", "final", "canonical"):
                holds = criterion == "all" or self._is_final
            elif criterion in tests:
                value = value or (words.pop(0) if words else "")
                holds = fits(value.split(","), tests[criterion]())
            elif applies:
                raise ConfigError(f"{line.where}: `Match {criterion}` is not supported; {HINT}")
            else:
                return False
            applies = applies and holds != name.startswith("!")
        return applies

    def _current_user(self) -> str:
        line = self.found.get("user")
        return self._user or (line.word() if line else self._local_user)


def fits(patterns: Sequence[str], name: str) -> bool:
    """Return whether a name fits one of the patterns, and none of those that begin with `!`."""
    fitting = [pattern for pattern in patterns if _fits_one(pattern.removeprefix("!"), name)]
    return bool(fitting) and not any(pattern.startswith("!") for pattern in fitting)


def _fits_one(pattern: str, name: str) -> bool:
    return re.fullmatch(translate(pattern.replace("[", "[[]")), name) is not None


def _included(name: str, folder: Path) -> list[Path]:
    """Return the files that an `Include` names, without folders."""
    # Not pathlib's `glob`, which also finds hidden files, such as those of an editor.
    found = sorted(glob(str(folder / os.path.expanduser(name))))
    return [Path(path) for path in found if os.path.isfile(path)]


def _lines_of(path: Path) -> tuple[Line, ...]:
    try:
        found = path.stat()
        return _read_lines(path, found.st_mtime_ns, found.st_size)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None


@cache
def _read_lines(path: Path, changed: int, size: int) -> tuple[Line, ...]:
    """Return the lines of one version of a file that are neither empty nor comments."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{path} cannot be read: it is not UTF-8 text") from None
    if "\0" in text:
        raise ConfigError(f"{path} cannot be read: it contains a NUL character")
    numbered = ((number, line.strip()) for number, line in enumerate(text.split("\n"), start=1))
    return tuple(
        Line(line, f"{path}:{number}") for number, line in numbered if line and not line.startswith("#")
    )
