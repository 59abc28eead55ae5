"""The files that let a user log in to a farm: keys, `~/.ssh/config` and `~/.ssh/known_hosts`."""

from __future__ import annotations

import os
import pwd
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)


@dataclass(frozen=True)
class FarmHost:
    """One host of a farm: its alias in `~/.ssh/config`, the address of its sshd, the folder of its files."""

    name: str
    address: str
    port: int
    directory: Path

    @property
    def key(self) -> Path:
        return self.directory / "ssh_host_ed25519_key"

    @property
    def log(self) -> Path:
        """The log of its sshd, at level VERBOSE."""
        return self.directory / "sshd.log"


def account() -> pwd.struct_passwd:
    """Return the account that every host accepts: our own, as only root's sshd can change to another.

    Raises:
        KeyError: our user id has no account.
    """
    return pwd.getpwuid(os.getuid())


def write_credentials(home: Path, hosts: Sequence[FarmHost]) -> None:
    """Write the keys of all hosts, and `.ssh` below `home` with a key that all accept and their names."""
    folder = home / ".ssh"
    folder.mkdir(parents=True, mode=0o700)
    (folder / "authorized_keys").write_text(write_key(folder / "id_ed25519") + "\n")
    user = account().pw_name
    config, known = [], []
    for host in hosts:
        host.directory.mkdir(parents=True)
        known.append(f"{_known_names(host)} {write_key(host.key)}\n")
        config.append(
            f"Host {host.name} {host.address}\n  HostName {host.address}\n  Port {host.port}\n  User {user}\n"
        )
    config.append(
        f"Host *\n  IdentityFile {folder}/id_ed25519\n  IdentitiesOnly yes\n  BatchMode yes\n"
        f"  UserKnownHostsFile {folder}/known_hosts\n  GlobalKnownHostsFile /dev/null\n"
        "  StrictHostKeyChecking yes\n"
    )
    (folder / "config").write_text("".join(config))
    (folder / "known_hosts").write_text("".join(known))


def _known_names(host: FarmHost) -> str:
    names = (host.name, host.address)
    return ",".join(names if host.port == 22 else (f"[{name}]:{host.port}" for name in names))


def write_key(path: Path) -> str:
    """Write a new private key and `.pub` beside it; return the public one."""
    key = Ed25519PrivateKey.generate()
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    path.with_name(f"{path.name}.pub").write_text(public + "\n")
    return public
