"""The user's SSH files as `ssh` reads them: the configuration with its `Include`s, and known hosts.

Each file is read once for all hosts: paramiko's own readers would read it again for each host.
"""

from __future__ import annotations

import io
import re
import shlex
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from glob import glob
from pathlib import Path
from threading import Lock
from typing import Any

import paramiko
from paramiko.hostkeys import HostKeyEntry, HostKeys, InvalidHostKey

_CONFIGS = (Path("~/.ssh/config"), Path("/etc/ssh/ssh_config"))
_DEEPEST = 16
"""The maximum depth of files that include files, as in OpenSSH."""
_EVERY = "Host *"
_READING = Lock()

Stamp = tuple[Path, int, int]
"""A version of a file: its path, modification time and size."""


def settings_of(host: str) -> dict[str, Any]:
    """Return the settings of a host in the user's and the system's configuration; keys in lower case.

    Raises:
        ConfigError: one of the files cannot be read.
    """
    stamps = tuple(_stamp(path.expanduser()) for path in _CONFIGS if path.expanduser().is_file())
    with _READING:
        config = _config(stamps)
    return dict(config.lookup(host))


def known_keys(paths: list[Path], name: str) -> Iterator[paramiko.PKey]:
    """Yield the keys that these files contain for a host or for `[host]:port`."""
    for path in paths:
        if path.is_file():
            with _READING:
                known = _keys_in(_stamp(path))
            yield from known.keys(name)


def _stamp(path: Path) -> Stamp:
    found = path.stat()
    return path, found.st_mtime_ns, found.st_size


@cache
def _config(stamps: tuple[Stamp, ...]) -> paramiko.SSHConfig:
    config = paramiko.SSHConfig()
    for path, *_ in stamps:
        try:
            config.parse(io.StringIO("\n".join(_lines(path, path.parent))))
        except (paramiko.SSHException, OSError, ValueError) as error:
            raise ConfigError(f"{path} cannot be read: {error}") from None
    return config


class ConfigError(Exception):
    """A configuration cannot be read; the message says why."""


def _lines(path: Path, folder: Path, block: str = _EVERY, depth: int = 0) -> Iterator[str]:
    """Yield the lines of a file, with included files in the place of `Include` lines.

    Lines after an `Include` belong to the same block as the lines before it. If a file is included for some
    hosts only, its blocks would apply to all hosts here, so they are left out.
    """
    is_for_all = block == _EVERY
    for line in path.read_text(encoding="utf-8").splitlines():
        word, rest = [*re.split(r"[\s=]+", line.strip(), maxsplit=1), ""][:2]
        if word.lower() == "include" and depth < _DEEPEST:
            for pattern in shlex.split(rest, comments=True):
                # Not pathlib's `glob`, which also finds hidden files, such as those of an editor.
                for found in sorted(glob(str(folder / Path(pattern).expanduser()))):
                    if Path(found).is_file():
                        yield from _lines(Path(found), folder, block, depth + 1)
            yield block
            continue
        if word.lower() in ("host", "match"):
            if not is_for_all:
                return
            block = _block(word.lower(), rest)
            line = block
        yield line


def _block(word: str, rest: str) -> str:
    """Return the line that begins a block in a form that paramiko accepts."""
    words = shlex.split(rest, comments=True)
    if word == "match" and "final" in words:  # paramiko: `all` cannot be combined with anything else
        words = [one for one in words if one != "all"]
    return _EVERY if (word, words) == ("host", ["*"]) else f"{word} {shlex.join(words)}"


@dataclass
class _Known:
    """The keys in a file of known hosts: by plain name, and those with patterns or hashed names."""

    plain: dict[str, list[paramiko.PKey]] = field(default_factory=lambda: defaultdict(list))
    others: list[tuple[list[str], paramiko.PKey]] = field(default_factory=list)

    def keys(self, name: str) -> Iterator[paramiko.PKey]:
        yield from self.plain.get(name, ())
        for patterns, key in self.others:
            if any(_fits(pattern, name) for pattern in patterns if not pattern.startswith("!")) and not any(
                _fits(pattern[1:], name) for pattern in patterns if pattern.startswith("!")
            ):
                yield key


@cache
def _keys_in(stamp: Stamp) -> _Known:
    known = _Known()
    path, *_ = stamp
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        try:
            entry = HostKeyEntry.from_line(line, number)
        except (InvalidHostKey, paramiko.SSHException, ValueError):
            continue  # like `ssh`, ignore bad lines
        if entry is None or entry.key is None or not entry.hostnames:
            continue
        if any(set(name) & set("*?!|") for name in entry.hostnames):
            known.others.append((entry.hostnames, entry.key))
        else:
            for name in entry.hostnames:
                known.plain[name].append(entry.key)
    return known


def _fits(pattern: str, name: str) -> bool:
    if pattern.startswith("|"):
        return HostKeys.hash_host(name, pattern) == pattern
    expression = re.escape(pattern).replace(r"\*", ".*").replace(r"\?", ".")
    return re.fullmatch(expression, name) is not None
