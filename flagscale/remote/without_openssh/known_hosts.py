"""Known host keys where OpenSSH is not installed; each version of a file is read once for all hosts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock

import paramiko
from paramiko.hostkeys import HostKeyEntry, HostKeys, InvalidHostKey

from flagscale.remote.without_openssh.ssh_config_blocks import HINT, ConfigError, fits

_READING = Lock()


def known_keys(paths: Sequence[Path], name: str) -> list[paramiko.PKey]:
    """Return the keys that these files contain for a host, for `[host]:port` or for an alias.

    Raises:
        ConfigError: a line with a marker (`@cert-authority`, `@revoked`) applies to it.
    """
    found: list[paramiko.PKey] = []
    for path in paths:
        try:
            status = path.stat()
            with _READING:
                known = _keys_in(path, status.st_mtime_ns, status.st_size)
        except OSError:
            continue  # like `ssh`, know nothing from a file that is missing or cannot be read
        found += known.keys(name)
    return found


@dataclass
class _Known:
    """A file: keys by plain name, keys with patterns or hashed names, and lines with markers."""

    plain: dict[str, list[paramiko.PKey]] = field(default_factory=lambda: defaultdict(list))
    others: list[tuple[list[str], paramiko.PKey]] = field(default_factory=list)
    marked: list[tuple[list[str], str]] = field(default_factory=list)

    def keys(self, name: str) -> Iterator[paramiko.PKey]:
        for names, what in self.marked:
            if _applies(names, name):
                raise ConfigError(f"{what} is not supported; {HINT}")
        yield from self.plain.get(name, ())
        yield from (key for names, key in self.others if _applies(names, name))


@cache
def _keys_in(path: Path, changed: int, size: int) -> _Known:
    known = _Known()
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), start=1):
        first, *rest = line.split(maxsplit=2) or [""]
        if first.startswith("@") and rest:
            known.marked.append((rest[0].split(","), f"{path}:{number}: `{first}`"))
            continue
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


def _applies(names: Sequence[str], name: str) -> bool:
    hashed = [one for one in names if one.startswith("|")]
    return fits(names, name) or any(_is_hash_of(one, name) for one in hashed)


def _is_hash_of(hashed: str, name: str) -> bool:
    try:
        return HostKeys.hash_host(name, hashed) == hashed
    except (ValueError, AssertionError):  # a damaged line
        return False
