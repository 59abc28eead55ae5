"""Reasons why a farm cannot be made on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from flagscale_testing.farm.credentials import account
from flagscale_testing.farm.namespaces import UNSHARE
from flagscale_testing.farm.sshd import find_program
from flagscale_testing.farm.switch import ip_program

_PASSWORDS = Path("/etc/shadow")
# What a namespace farm requires of the kernel, tried in namespaces that end with the command.
_TRIAL = "link add br0 type bridge\nlink add veth0 type veth peer name veth1\nlink set veth0 master br0 up"


@cache
def missing_for_loopback() -> str | None:
    """Return why a loopback farm cannot be made here, or None if it can."""
    if sys.platform != "linux":
        return "a farm requires Linux"
    return _account_problem() or _missing_programs(["sshd", "ssh", "setpriv"])


@cache
def missing_for_namespaces() -> str | None:
    """Return why a namespace farm cannot be made here, or None if it can."""
    if reason := missing_for_loopback() or _missing_programs(["ip", "unshare", "nsenter"]):
        return reason
    if os.getuid() != 0:
        return "only root can create network namespaces"
    trial = subprocess.run(
        [*UNSHARE, ip_program(), "-batch", "-"], input=_TRIAL, capture_output=True, text=True
    )
    return f"network namespaces cannot be created here: {trial.stderr.strip()}" if trial.returncode else None


def _account_problem() -> str | None:
    try:
        user = account()
    except KeyError:
        return f"sshd accepts only users with an account, and user id {os.getuid()} has none"
    if Path(user.pw_shell).name in ("nologin", "false"):
        return f"sshd requires a login shell, and {user.pw_name} has none"
    if os.access(_PASSWORDS, os.R_OK) and f"\n{user.pw_name}:!" in f"\n{_PASSWORDS.read_text()}":
        return f"sshd rejects locked accounts such as {user.pw_name} (usermod --password '*' unlocks it)"
    return None


def _missing_programs(names: Sequence[str]) -> str | None:
    absent = [name for name in names if find_program(name) is None]
    return f"not installed: {', '.join(absent)}" if absent else None
