"""One sshd of a farm: its configuration, its command line, and whether it is ready."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from flagscale_testing.farm.credentials import FarmHost, account

HOST_MARK = "FARM_HOST"
TAG_MARK = "FARM_TAG"
"""Environment variables of every session and its children: the name of the host, and the tag of its farm."""
_PRIVILEGE_SEPARATION = Path("/run/sshd")  # compiled into sshd; usually created by the service manager


def find_program(name: str) -> str | None:
    """Return the path of a program, even if the administrators' folders are not in PATH."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]))


def write_config(host: FarmHost, authorized_keys: Path, tag: str) -> None:
    """Write the configuration of the host's sshd."""
    if os.getuid() == 0:
        _PRIVILEGE_SEPARATION.mkdir(mode=0o755, exist_ok=True)
    settings = {
        "ListenAddress": f"{host.address}:{host.port}",
        "HostKey": host.key,
        "AuthorizedKeysFile": authorized_keys,
        "AllowUsers": account().pw_name,
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "UsePAM": "no",
        "UseDNS": "no",
        "StrictModes": "no",
        "PidFile": "none",
        "PrintLastLog": "no",
        "LogLevel": "VERBOSE",
        "MaxStartups": 1000,
        "MaxSessions": 1000,
        "Subsystem": "sftp internal-sftp",
        # The farm's home, so that shells do not read the user's files: if a test killed a session while they
        # run, this machine would be affected (by a lock that is left behind, for example).
        "SetEnv": f"HOME={authorized_keys.parents[1]} {TAG_MARK}={tag} {HOST_MARK}={host.name}",
    }
    _config(host).write_text("".join(f"{name} {value}\n" for name, value in settings.items()))


def command(host: FarmHost) -> list[str]:
    """Return the command line that runs the host's sshd in the foreground, with its log on stderr."""
    program = find_program("sshd")
    assert program, "sshd is not installed"
    return [program, "-D", "-e", "-f", str(_config(host))]


def starts(host: FarmHost) -> int:
    """Return how often the host's sshd has logged that it listens."""
    return host.log.read_text(errors="replace").count("Server listening on") if host.log.exists() else 0


def _config(host: FarmHost) -> Path:
    return host.directory / "sshd_config"
