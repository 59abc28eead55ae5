"""The user's SSH configuration where OpenSSH is not installed: as `ssh` reads it, or refused by name.

Each option that applies to a host is understood, or has no effect on our connections, or is refused with its
file and line. Nothing is guessed.
"""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from flagscale.remote.without_openssh.ssh_config_blocks import HINT, ConfigError, Line, Reading

_CONFIGS = ("~/.ssh/config", "/etc/ssh/ssh_config")
_IDENTITIES = "~/.ssh/id_rsa ~/.ssh/id_ecdsa ~/.ssh/id_ed25519"
_KNOWN_HOSTS = {
    "userknownhostsfile": "~/.ssh/known_hosts ~/.ssh/known_hosts2",
    "globalknownhostsfile": "/etc/ssh/ssh_known_hosts /etc/ssh/ssh_known_hosts2",
}
_UNDERSTOOD = (
    *_KNOWN_HOSTS,
    "hostname",
    "port",
    "user",
    "hostkeyalias",
    "identitiesonly",
    "proxyjump",
    "proxycommand",
)
_WITHOUT_EFFECT = """
    addkeystoagent batchmode challengeresponseauthentication clearallforwardings compression
    connectionattempts connecttimeout controlmaster controlpath controlpersist dynamicforward
    enableescapecommandline escapechar exitonforwardfailure fingerprinthash forkafterauthentication
    forwardagent forwardx11 forwardx11timeout forwardx11trusted gatewayports gssapiauthentication
    gssapidelegatecredentials hashknownhosts ignoreunknown ipqos kbdinteractiveauthentication
    localforward loglevel logverbose numberofpasswordprompts obscurekeystroketiming
    passwordauthentication permitremoteopen rekeylimit remotecommand remoteforward requesttty sendenv
    serveralivecountmax serveraliveinterval sessiontype stdinnull streamlocalbindmask
    streamlocalbindunlink syslogfacility tcpkeepalive updatehostkeys usekeychain visualhostkey
    xauthlocation
"""
"""Options that do not change where, as whom, through what and with which host key one connects."""
_WITHOUT_EFFECT_AS = {
    "addressfamily": ("any",),
    "canonicalizehostname": ("no", "none"),
    "certificatefile": ("none",),
    "checkhostip": ("no",),
    "hostbasedauthentication": ("no",),
    "identityagent": ("ssh_auth_sock",),
    "knownhostscommand": ("none",),
    "nohostauthenticationforlocalhost": ("no",),
    "permitlocalcommand": ("no",),
    "preferredauthentications": ("publickey",),
    "proxyusefdpass": ("no",),
    "pubkeyauthentication": ("yes", "true"),
    "stricthostkeychecking": ("yes", "true", "ask"),
    "verifyhostkeydns": ("no",),
}
"""Further options, and the values with which they have no effect here."""


@dataclass(frozen=True)
class HostSettings:
    """What the configuration says about a host, with all tokens replaced."""

    address: str
    port: int
    user: str
    alias: str
    """The name under which its host key is known; "" for that of the address."""
    jumps: str
    """The hosts on the way, with commas; "" for none."""
    command: str
    """The shell command that connects to it; "" for none."""
    identities: tuple[Path, ...]
    only_identities: bool
    known_hosts: tuple[Path, ...]


def settings_of(host: str, port: int | None = None, user: str = "") -> HostSettings:
    """Return the settings of a host; `port` and `user` count before the configuration.

    Raises:
        ConfigError: the configuration cannot be read, or needs OpenSSH; the message lists every mistake.
    """
    local_user = _local_user()
    reading = Reading(host, user, local_user)
    reading.read([Path(os.path.expanduser(path)) for path in _CONFIGS])
    found = reading.found
    if refused := [line for line in found.values() if not _is_supported(line)]:
        names = [f"{line.where}: `{line.name}` is not supported" for line in refused]
        raise ConfigError("; ".join([*names, HINT]))

    def word(option: str) -> str:
        return found[option].word() if option in found else ""

    address, number = reading.address(), port or _port(found.get("port"))
    user = user or word("user") or local_user
    if not user:
        raise ConfigError("this account has no name; set User in ~/.ssh/config")
    tokens = {"%": "%", "h": address, "n": host, "p": str(number), "r": user}
    jump, command = found.get("proxyjump"), found.get("proxycommand")
    own = {**tokens, "u": local_user, "d": os.path.expanduser("~")}
    default = Line(f"IdentityFile {_IDENTITIES}", "")
    return HostSettings(
        address=address,
        port=number,
        user=user,
        alias=word("hostkeyalias"),
        jumps=jump.value.split()[0] if jump and jump.value and not jump.is_none() else "",
        command=command.expand(command.value, tokens) if command and not command.is_none() else "",
        identities=tuple(_paths(reading.identities.values() or [default], own)),
        only_identities=_is_yes(found.get("identitiesonly")),
        known_hosts=tuple(
            _paths(
                [found.get(name, Line(f"{name} {files}", "")) for name, files in _KNOWN_HOSTS.items()], own
            )
        ),
    )


def _is_supported(line: Line) -> bool:
    if line.option in _WITHOUT_EFFECT_AS:
        return [word.lower() for word in line.words()] in [
            [value] for value in _WITHOUT_EFFECT_AS[line.option]
        ]
    return line.option in _UNDERSTOOD or line.option in _WITHOUT_EFFECT.split()


def _is_yes(line: Line | None) -> bool:
    if line and line.word().lower() not in ("yes", "no", "true", "false"):
        raise ConfigError(f"{line.where}: `{line.name}` is `yes` or `no`")
    return line is not None and line.word().lower() in ("yes", "true")


def _port(line: Line | None) -> int:
    if line is None:
        return 22
    if re.fullmatch(r"\d{1,5}", text := line.word()) and 0 < int(text) < 65536:
        return int(text)
    raise ConfigError(f"{line.where}: `{line.value}` is not a port")


def _paths(lines: Iterable[Line], tokens: Mapping[str, str]) -> Iterable[Path]:
    """Yield the files that options name."""
    for line in lines:
        for word in line.words():
            if word.lower() == "none":
                continue
            yield Path(os.path.expanduser(line.expand(_with_variables(word, line), tokens)))


def _with_variables(word: str, line: Line) -> str:
    """Return a word with each `${NAME}` replaced by the variable of the environment."""

    def value(found: re.Match[str]) -> str:
        if found[1] not in os.environ:
            raise ConfigError(f"{line.where}: the environment variable {found[1]} is not set")
        return os.environ[found[1]].replace("%", "%%")

    return re.sub(r"\$\{([^}]*)\}", value, word)


def _local_user() -> str:
    """Return the name of our account, or the one in the environment if it has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return os.environ.get("LOGNAME") or os.environ.get("USER") or ""
