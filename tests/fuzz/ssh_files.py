"""SSH configurations and known hosts in which a hand has slipped, and reading them without OpenSSH."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import strategies as st

from flagscale.remote.without_openssh import ssh_config
from flagscale.remote.without_openssh.known_hosts import known_keys
from flagscale.remote.without_openssh.ssh_config_blocks import ConfigError
from flagscale.remote.without_openssh.ssh_jumps import read_jumps
from tests.fuzz.fragments import SSH_LINES, SSH_VALUES

_CONFIG = """\
# our cluster
Include config.d/*
Host gpu-* !gpu-9
  HostName %h.cluster.example
  User me
  Port 2222
  ProxyJump jump
  IdentityFile ~/.ssh/id_%r
Match host gpu-1 user me
  HostKeyAlias first
Host jump
  HostName 10.0.0.1
Host *
  ServerAliveInterval 30
  UserKnownHostsFile ~/.ssh/known_hosts
"""
_KEY = "AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
_KNOWN = f"""\
gpu-1,10.0.0.7 ssh-ed25519 {_KEY} a comment
[gpu-2]:2222 ssh-ed25519 {_KEY}
|1|F1E1KeoE/eEWhi10WpGv4OdiO6Y=|3988QV0VE8wmZL7suNrYQLITLCg= ssh-ed25519 {_KEY}
*.cluster.example,!bad.cluster.example ssh-ed25519 {_KEY}
"""


@dataclass(frozen=True)
class SshFiles:
    """The files of `~/.ssh`; an included one may be missing."""

    config: bytes
    included: bytes | None
    known_hosts: bytes


@st.composite
def ssh_slips(draw: st.DrawFn) -> SshFiles:
    """Files of which one or several have slips."""
    config, known = (draw(_after_slips(text)) for text in (_CONFIG, _KNOWN))
    included = draw(st.none() | _after_slips("Host other\n  User you\nInclude ../config\n"))
    return SshFiles(config, included, known)


@st.composite
def _after_slips(draw: st.DrawFn, text: str) -> bytes:
    lines = text.splitlines()
    for _ in range(draw(st.integers(0, 3))):
        where = draw(st.integers(0, len(lines) - 1))
        line = lines[where]
        option = line.split(maxsplit=1)[0] if line.strip() else line
        value = draw(st.sampled_from(SSH_VALUES) | st.text(max_size=8))
        changed = draw(
            st.sampled_from(
                [
                    [f"  {option} {value}"],
                    [f"{option}={value}"],
                    [line, draw(st.sampled_from(SSH_LINES))],
                    [line.replace(" ", "")],
                    [f"{line} {value}"],
                    [line[: len(line) // 2]],
                    [line, line],
                    [f"{line}\0"],
                    [f'{line}"'],
                    [],
                ]
            )
        )
        lines = [*lines[:where], *changed, *lines[where + 1 :]] or [""]
    ending = draw(st.sampled_from(["\n", "\n", "\n", "\r\n", "\r"]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "latin-1"]))
    return ending.join([*lines, ""]).encode(encoding, "surrogatepass" if "8" in encoding else "replace")


def read_ssh_files(files: SshFiles) -> None:
    """Read the files for some hosts; raises nothing but what is documented."""
    with TemporaryDirectory(prefix="slips-") as name:
        folder = Path(name, ".ssh")
        (folder / "config.d").mkdir(parents=True)
        (folder / "config").write_bytes(files.config)
        (folder / "known_hosts").write_bytes(files.known_hosts)
        if files.included is not None:
            (folder / "config.d" / "other").write_bytes(files.included)
        home, os.environ["HOME"] = os.environ["HOME"], name
        try:
            for host in ("gpu-1", "gpu-9", "jump", "bad.cluster.example", "::1"):
                with suppress(ConfigError):
                    read_jumps(ssh_config.settings_of(host).jumps)
                with suppress(ConfigError):
                    known_keys([folder / "known_hosts"], host)
        finally:
            os.environ["HOME"] = home
