"""What `ssh` prints when it fails, turned into one line that says what is wrong and how to fix it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_LAST_LINES = 20
_NO_REASON = re.compile(
    r"Authenticated to |Transferred: sent |Bytes per second: |Warning: Permanently added |"
    r"Pseudo-terminal will not be allocated|\*\* |Warning: remote port forwarding|@{9}|\s*$"
)
"""Lines that explain no failure; `** ` begins the warnings of OpenSSH 10 about key exchanges."""
_DROPPED = re.compile(
    r"kex_exchange_identification: (read: )?Connection (closed|reset) by|Connection (closed|reset) by "
)
_CROWDED = re.compile(
    r"kex_exchange_identification: .*\nConnection (closed|reset) by (?!UNKNOWN)(\S+) port (\d+)"
)
_ON_THE_WAY = "UNKNOWN port 65535"
"""How `ssh` names the end of a connection through another host or a command."""
_NOWHERE = ("/dev/null", "none", "")


@dataclass(frozen=True)
class Destination:
    """Where `ssh` was to connect, as far as it is known."""

    host: str
    """The name on the command line."""
    job_port: int | None = None
    address: str = ""
    port: str = ""
    through: str = ""
    """The option that leads there, if the connection is not direct."""
    alias: str = ""
    known_hosts: str = ""
    locked: tuple[str, ...] = ()
    """Identities with a passphrase."""
    timeout: float = 0.0

    @property
    def command(self) -> str:
        """A command line that connects in the same way."""
        return shlex.join(["ssh", *(["-p", str(self.job_port)] if self.job_port else []), self.host])


def messages(printed: str) -> str:
    """Return what `ssh` and its remote command have printed, without notices that explain no failure."""
    lines = [line.rstrip("\r") for line in printed.splitlines()]
    return "\n".join([line for line in lines if not _NO_REASON.match(line)][-_LAST_LINES:])


def is_crowded(printed: str) -> bool:
    """Return whether a server closed the connection without a word, as with too many logins at once."""
    return _CROWDED.match(messages(printed)) is not None


def reason(printed: str, to: Destination) -> str:
    """Return why `ssh` has failed: its own words where they are not known here."""
    text = messages(printed)
    if "bad configuration options" in text:
        wrong = re.findall(r"^(.+?):? line (\d+): (.+)$", text, re.MULTILINE)
        return "; ".join(f"{file}:{line}: {what}" for file, line, what in wrong) or text
    if crowded := _CROWDED.match(text):
        place = f"{crowded[2]} port {crowded[3]}"
        return f"{place} closed the connection at once; perhaps it has too many logins (MaxStartups)"
    for pattern, explain in _REASONS:
        if found := re.search(pattern, text, re.MULTILINE):
            return explain(found, to, text)
    return f"{_where(to)}: {_last_line(text)}" if to.address else text


def _where(to: Destination) -> str:
    return f"{to.address} port {to.port}" + (f" (through {to.through})" if to.through else "")


def _last_line(text: str) -> str:
    """Return the words of the failure, without the ends of the connection that followed it."""
    lines = text.splitlines()
    return (
        "\n".join([line for line in lines if not _DROPPED.match(line)] or lines) or "it closed the connection"
    )


def _refused(found: re.Match[str], to: Destination, text: str) -> str:
    address, port, why = found.groups()
    if why == "Connection timed out":
        return f"no answer from {address} port {port} within {to.timeout:g} s"
    return f"{address} port {port}: {why}"


def _unresolved(found: re.Match[str], to: Destination, text: str) -> str:
    return f"cannot resolve the host name {found[1]} ({found[2]})"


def _forwarded(found: re.Match[str], to: Destination, text: str) -> str:
    return f"{_where(to)}: {found[1]}"


def _silent(found: re.Match[str], to: Destination, text: str) -> str:
    if _ON_THE_WAY in text:
        return f"no answer from {_where(to)} within {to.timeout:g} s"
    return f"{_where(to)} accepts connections, but no SSH server answered in {to.timeout:g} s"


def _denied(found: re.Match[str], to: Destination, text: str) -> str:
    unused = [f"; {words}" for words in _unused_keys(text)]
    if to.locked:
        unused.append(f"; {to.locked[0]} has a passphrase: load it into an agent with `ssh-add`")
    return f"none of your keys is accepted ({found[0].rstrip('.')}){''.join(unused)}; try `{to.command}`"


def _unused_keys(text: str) -> Iterator[str]:
    """Yield why each key that `ssh` could not read was not even offered."""
    for missing, key, why in re.findall(
        r'^no such identity: (.+?): No such file .*$|^Load key "(.+)": (.+)$', text, re.MULTILINE
    ):
        if missing:
            yield f"{missing} does not exist"
        elif why == "bad permissions":
            yield f"{key} is not used because others can read it: `chmod 600 {shlex.quote(key)}`"
        else:
            yield f"{key} is not used ({why})"


def _too_many(found: re.Match[str], to: Destination, text: str) -> str:
    return (
        f"none of your keys is accepted ({found[1]}); name the right one in ~/.ssh/config with IdentityFile "
        "and `IdentitiesOnly yes`"
    )


def _revoked(found: re.Match[str], to: Destination, text: str) -> str:
    return f"its host key is revoked: {found[0].rstrip('.')}. Do not connect before the host has a new key"


def _changed(found: re.Match[str], to: Destination, text: str) -> str:
    place = re.search(r"^Offending \S+ key in (.+):\d+$", text, re.MULTILINE)
    file = place[1] if place else to.known_hosts
    remove = shlex.join(["ssh-keygen", "-f", file, "-R", found[1]])
    return (
        f"{_whose(found[1], text)} has changed: someone may be intercepting the connection; if the host was "
        f"reinstalled, run `{remove}` and {_how_to_add(found[1], to, text)}"
    )


def _unknown(found: re.Match[str], to: Destination, text: str) -> str:
    named = re.search(r"^No \S+ host key is known for (\S+) and", text, re.MULTILINE)
    name = named[1] if named else ""
    known = re.compile(rf"Host key verification failed|No \S+ host key is known|{_DROPPED.pattern}")
    more = "".join(f" ({line})" for line in text.splitlines() if not known.match(line))
    return f"{_whose(name, text)} is unknown{more}; verify it, then add it: {_how_to_add(name, to, text)}"


def _whose(name: str, text: str) -> str:
    """Return whose host key it is: that of the destination, or of a host on the way by its name."""
    return f"the host key of {name}" if name and _ON_THE_WAY in text else "its host key"


def _how_to_add(name: str, to: Destination, text: str) -> str:
    """Return the command that adds a host key under a name of `known_hosts` ("": that of the destination)."""
    is_target = _ON_THE_WAY not in text
    if to.known_hosts in _NOWHERE:
        return f"name a file for it with UserKnownHostsFile, which is `{to.known_hosts or 'none'}`"
    if is_target and (to.through or to.alias):
        return f"`{to.command.replace('ssh', 'ssh -o StrictHostKeyChecking=ask', 1)}`"
    if not name and not is_target:
        return f"`{to.command}`"
    address, _, port = name.removeprefix("[").partition("]:") if name else (to.address, "", to.port)
    return f"`ssh-keyscan -p {port or 22} {shlex.quote(address)} >> {shlex.quote(to.known_hosts)}`"


_REASONS: tuple[tuple[str, Callable[[re.Match[str], Destination, str], str]], ...] = (
    (r"^ssh: connect to host (\S+) port (\d+): (.+)$", _refused),
    (r"^ssh: Could not resolve hostname (\S+): (.+)$", _unresolved),
    (r"^The \S+ host key for \S+ is marked as revoked\.$", _revoked),
    (r"^Host key \S+ \S+ revoked by file .+$", _revoked),
    (r"^Host key for (\S+) has changed and you have requested strict checking\.$", _changed),
    (r"^Host key verification failed\.$", _unknown),
    (r"^.*: (Too many authentication failures)$", _too_many),
    (r"^\S+: Permission denied \(.*\)\.$", _denied),
    (r"^channel \d+: open failed: (.+)\n(?:.*\n)?stdio forwarding failed$", _forwarded),
    (r"^Connection timed out during banner exchange$", _silent),
)
