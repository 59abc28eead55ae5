"""OpenSSH's client on this machine: where it is, and what it makes of the user's configuration."""

from __future__ import annotations

import atexit
import errno
import os
import pwd
import re
import shutil
import subprocess
from base64 import b64decode
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from glob import escape
from pathlib import Path
from tempfile import NamedTemporaryFile

from flagscale.remote.openssh.errors import Destination, reason
from flagscale.remote.pipe import Unreachable

_SYSTEM_CONFIG = Path("/etc/ssh/ssh_config")
_IDENTITIES = ("id_rsa", "id_ecdsa", "id_ecdsa_sk", "id_ed25519", "id_ed25519_sk", "id_xmss", "id_dsa")

_KEY = b"openssh-key-v1\0"
_PLAIN_KEY = _KEY + b"\0\0\0\4none"
"""How a private key begins, and one without a passphrase: the name of its cipher (OpenSSH's PROTOCOL.key)."""


def program() -> str | None:
    """Return the path of OpenSSH's client; None if it is not installed or cannot be used by our account."""
    path = shutil.which("ssh")
    return path if path and _account_home() and version(path) else None


@cache
def version(path: str) -> tuple[int, ...]:
    """Return the version of a client, () if it is not OpenSSH."""
    # Not only at the beginning: a wrapper may print a line of its own first.
    found = re.search(r"^OpenSSH\w*_(\d+)\.(\d+)", _run(path, "-V").stderr, re.MULTILINE)
    return tuple(map(int, found.groups())) if found else ()


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of OpenSSH without input or terminal; return its output."""
    try:
        return subprocess.run(
            words,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        raise cannot_start(words[0], error) from None


def cannot_start(path: str, error: OSError) -> Unreachable:
    """Return the error of a program that cannot be started."""
    is_limit = error.errno in (errno.EMFILE, errno.ENFILE, errno.EAGAIN)
    hint = "; raise the limits of your shell (`ulimit -n`, `ulimit -u`)" if is_limit else ""
    return Unreachable(f"cannot start {path}: {error.strerror}{hint}")


@cache
def _account_home() -> str | None:
    """Return the home of our account; None for a user id without an account, which `ssh` refuses."""
    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        return None


@dataclass(frozen=True)
class Settings:
    """What `ssh -G` prints for a host: the values of each option, whose name is in lower case."""

    values: Mapping[str, Sequence[str]]

    def first(self, name: str) -> str:
        """Return the first value of an option, "" if it has none."""
        found = self.values.get(name, ("none",))[0]
        return "" if found == "none" else found


def settings(host: str, port: int | None = None) -> Settings:
    """Return the settings that `ssh` uses for a host.

    Raises:
        Unreachable: the configuration has mistakes; the message lists them.
    """
    return _asked(config_files(), host, port)


def _asked(files: tuple[str, ...], host: str, port: int | None) -> Settings:
    done = _run(program() or "ssh", *files, "-G", *place(host, port))
    if done.returncode:
        raise Unreachable(reason(done.stderr, Destination(host)))
    values: dict[str, list[str]] = {}
    for line in done.stdout.split("\n"):
        name, _, value = line.partition(" ")
        values.setdefault(name, []).append(value)
    return Settings(values)


def place(host: str, port: int | None) -> list[str]:
    """Return the last words of a command line: the port of the job, if it has one, and the host."""
    return [*(["-p", str(port)] if port else []), "--", host]


def config_files() -> tuple[str, ...]:
    """Return the words that make `ssh` read the configuration below $HOME.

    OpenSSH takes the home directory of the account instead. If $HOME is another one and has a `.ssh` of ours,
    that one counts, as for other programs. `~` in its files is the home of the account, as `ssh` reads it.
    """
    home = os.environ.get("HOME", "")
    if not home or os.path.realpath(home) == os.path.realpath(_account_home() or ""):
        return ()
    folder = Path(os.path.abspath(home)) / ".ssh"
    is_ours = os.path.isdir(folder) and os.stat(folder).st_uid == os.getuid()
    return _config(folder, identities=()) if is_ours else ()


def config_files_of(host: str, port: int | None) -> tuple[str, ...]:
    """Return the same for one host: with the identities of $HOME if its configuration names none."""
    if not (files := config_files()):
        return ()
    folder = Path(os.path.abspath(os.environ["HOME"])) / ".ssh"
    identities = tuple(folder / name for name in _IDENTITIES if os.path.isfile(folder / name))
    if not identities:
        return files
    named = _asked(files, host, port).values.get("identityfile", ())
    by_default = len(named) > 1 and all(name.removeprefix("~/.ssh/") in _IDENTITIES for name in named)
    return _config(folder, identities) if by_default else files


@cache
def _config(folder: Path, identities: tuple[Path, ...]) -> tuple[str, ...]:
    """Return the words that name a configuration of ours."""
    # The first value of an option counts, so the last lines are the defaults.
    lines = [f"Include {_quoted(escape(str(path)))}" for path in (folder / "config", _SYSTEM_CONFIG)]
    known = " ".join(_quoted(str(folder / name)) for name in ("known_hosts", "known_hosts2"))
    lines += ["Host *", f"UserKnownHostsFile {known}"]
    lines += [f"IdentityFile {_quoted(str(path))}" for path in identities]
    return ("-F", _written("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape")))


def _written(text: bytes) -> str:
    """Return the path of a file with this text, which exists until our process ends."""
    if hasattr(os, "memfd_create"):  # Linux: even a process that is killed leaves no file behind
        handle = os.memfd_create("ssh_config")
        os.write(handle, text)
        return f"/proc/{os.getpid()}/fd/{handle}"
    file = _FILES.enter_context(NamedTemporaryFile(prefix="ssh_config."))  # noqa: SIM115
    file.write(text)
    file.flush()
    return file.name


_FILES = ExitStack()
atexit.register(_FILES.close)


def destination(host: str, port: int | None, timeout: float) -> Destination:
    """Return what a message about a failed connection needs to say."""
    try:
        known = settings(host, port)
    except Unreachable:  # it was changed a moment ago
        return Destination(host, port, timeout=timeout)
    option = next((name for name in ("ProxyJump", "ProxyCommand") if known.first(name.lower())), "")
    home = _account_home() or ""  # `~` for `ssh`
    files = [re.sub("^~/", lambda _: f"{home}/", name) for name in known.values.get("identityfile", ())]
    return Destination(
        host,
        port,
        address=known.first("hostname"),
        port=known.first("port"),
        through=option and f"{option} {known.first(option.lower())}",
        alias=known.first("hostkeyalias"),
        known_hosts=known.first("userknownhostsfile").partition(" ")[0],
        locked=tuple(file for file in files if _has_passphrase(file)),
        timeout=timeout,
    )


def _has_passphrase(identity: str) -> bool:
    """Return whether a private key can be read only with a passphrase; `ssh` passes over it silently."""
    try:
        lines = Path(identity).read_bytes().splitlines()
    except OSError:
        return False
    if any(b"ENCRYPTED" in line for line in lines[:2]):  # a PEM file
        return True
    with suppress(ValueError):
        key = b64decode(b"".join(line for line in lines if not line.startswith(b"-----")))
        return key.startswith(_KEY) and not key.startswith(_PLAIN_KEY)
    return False


def _quoted(path: str) -> str:
    return f'"{path}"'
