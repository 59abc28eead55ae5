"""Configurations of `ssh` that change where, as whom, through what or with which host key one connects."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """A configuration, put before the farm's own lines. `{a}`, `{b}`, `{c}` are addresses of its hosts."""

    name: str
    config: str
    host: str = "t"
    port: int = 0
    """1: the job has a port, that of the farm."""
    known: str = ""
    """Replaces the file of known hosts; `hashed`: the same file with hashed names."""
    own: str = ""
    """Replaces the farm's lines for all hosts."""
    says: str = ""
    """Nobody can connect, and our message contains this."""
    names: str = ""
    """The option that is refused without OpenSSH; "": none is."""


T = "Host t\n HostName {a}\n Port {port}\n"
C = "Host t\n HostName {c}\n Port {port}\n"
FILES = "UserKnownHostsFile {ssh}/known_hosts\nGlobalKnownHostsFile /dev/null\nStrictHostKeyChecking yes\n"
TOKENS = """User {user}
  ProxyCommand /bin/sh -c '[ "%r %n 5%%" = "$0 t 5%%" ] && exec {relay} "%h" %p' {user}\n"""

FAST = [
    Case("port of the job", "Host t\n HostName {a}\n Port 1\n", port=1),
    Case("jumps", T + " ProxyJump {user}@[::1]:{port},ssh://{user}@{c}:{port}\n"),
    Case("tokens of a command", T + TOKENS),
    Case("HostKeyAlias", T + " HostKeyAlias other\n", known="other {key_a}"),
    Case("revoked", T, known="{all}@revoked * {key_a}", says="revoked", names="@revoked"),
    Case("Match exec", T + 'Match exec "test %n = t"\n ProxyJump node-2\n', names="Match exec"),
    Case("Include for a host", "Host t\n Include '{ssh}/some hosts'\n" + T),
    Case("User", T + " User nobody-of-this-name\n", says="none of your keys is accepted"),
    Case("accept-new", T + " StrictHostKeyChecking accept-new\n", known="#", names="StrictHostKeyChecking"),
    Case("BindAddress", T + " BindAddress 127.0.0.9\n", names="BindAddress"),
    Case("RemoteCommand", T + " RemoteCommand false\n RequestTTY force\n SessionType none\n"),
]
SLOW = [
    Case("port", T),
    Case("jump by name", T + " ProxyJump node-2\n"),
    Case("jump to IPv6", T + " ProxyJump {user}@[::1]:{port}\n"),
    Case("jump by URI", T + " ProxyJump ssh://{user}@{b}:{port}\n"),
    Case("jumps by name and address", T + " ProxyJump node-2,{user}@{c}:{port}\n"),
    Case("jump by user, address and port", T + " ProxyJump {user}@{b}:{port}\n"),
    Case("jump whose jump is configured", "Host node-2\n ProxyJump node-3\n" + T + " ProxyJump node-2\n"),
    Case("no jump", T + " ProxyJump none\nHost *\n ProxyJump node-2\n"),
    Case("jump to nowhere", T + " ProxyJump {b}:1\n", says="{b} port 1: Connection refused"),
    Case("jump before command", T + " ProxyJump node-2\n ProxyCommand false\n"),
    Case("command", T + " ProxyCommand {relay} %h %p\n"),
    Case("command before jump", T + " ProxyCommand {relay} %h %p\n ProxyJump node-2\n"),
    Case("no command", T + " ProxyCommand none\nHost *\n ProxyCommand false\n"),
    Case("command that fails", T + " ProxyCommand false\n", says="{a} port {port}"),
    Case("token without support", T + " IdentityFile {ssh}/%C\n", names="%C"),
    Case("HostKeyAlias that is unknown", T + " HostKeyAlias other\n", says="its host key is unknown"),
    Case("authority", C, known="@cert-authority * {ca}", names="@cert-authority"),
    Case("known among several", T, known="[{a}]:{port} {key_b}\n[{a}]:{port} {key_a}"),
    Case("known without a port", T, known="{a} {key_a}"),
    Case("known with another key", T, known="[{a}]:{port} {key_b}", says="its host key has changed"),
    Case("Match host", T + "Match host {a}\n ProxyJump node-2\nMatch host t\n ProxyCommand false\n"),
    Case("Match originalhost", T + "Match originalhost t,u\n ProxyJump node-2\n"),
    Case("Match not originalhost", T + "Match !originalhost t\n ProxyCommand false\n"),
    Case("Match user", "Host t\n User {user}\n HostName {a}\nMatch user {user} localuser *\n Port {port}\n"),
    Case("Match not exec", T + 'Match originalhost u exec "true"\n ProxyCommand false\n'),
    Case("Match final", T + "Match final host {a}\n ProxyJump node-2\n"),
    Case("Match all", "Host t\n HostName {a}\nMatch all\n Port {port}\n"),
    Case("patterns", "Host t? !t2\n Port 1\nHost t2 u*\n HostName {a}\n Port {port}\n", host="t2"),
    Case("Include", 'Include "{ssh}/some hosts"\n' + T),
    Case("Include for another host", 'Host u\n Include "{ssh}/some hosts"\n' + T),
    Case("several identities", T, own="IdentityFile {ssh}/stranger\nIdentityFile {ssh}/second\n" + FILES),
    Case(
        "IdentitiesOnly",
        T,
        own="IdentityFile {ssh}/stranger\nIdentitiesOnly yes\n" + FILES,
        says="none of your keys is accepted",
    ),
    Case(
        "CertificateFile",
        C,
        own="IdentityFile {ssh}/stranger\nCertificateFile {ssh}/certificate\n" + FILES,
        names="CertificateFile",
    ),
    Case("quotes", 'Host "t"\n HostName="{a}"\n Port = {port} # a comment\n IdentityFile "{ssh}/second"\n'),
    Case("HostName", "Host 2\n HostName 127.0.0.%h\n Port {port}\n", host="2"),
    Case(
        "CanonicalizeHostname",
        "CanonicalizeHostname yes\nMatch canonical host {a}\n ProxyJump node-2\n",
        host="127.0.0.2",
        names="CanonicalizeHostname",
    ),
    Case(
        "StrictHostKeyChecking no",
        T + " StrictHostKeyChecking no\n UserKnownHostsFile /dev/null\n",
        names="StrictHostKeyChecking",
    ),
    Case("UserKnownHostsFile", T + " UserKnownHostsFile /dev/null {ssh}/known_hosts\n"),
    Case(
        "KnownHostsCommand",
        T + " KnownHostsCommand /bin/cat {ssh}/all\n",
        known="#",
        names="KnownHostsCommand",
    ),
    Case("AddressFamily", T + " AddressFamily inet6\n", says="cannot resolve", names="AddressFamily"),
    Case("ControlMaster", T + " ControlMaster auto\n ControlPersist 2\n ControlPath {ssh}/master-%h\n"),
    Case("LocalForward", T + " LocalForward {port} localhost:1\n ExitOnForwardFailure yes\n"),
    Case("SetEnv", T + " SetEnv FARM_HOST=elsewhere\n", names="SetEnv"),
    Case(
        "PubkeyAuthentication",
        T + " PubkeyAuthentication no\n",
        says="none of your keys is accepted",
        names="PubkeyAuthentication",
    ),
    Case("HashKnownHosts", T + " HashKnownHosts yes\n", known="hashed"),
    Case("without effect", T + " Compression yes\n LogLevel QUIET\n ForwardAgent yes\n SendEnv LANG\n"),
    Case("unknown option", T + " Nonsense 1\n", says="{ssh}/config:4: ", names="Nonsense"),
    Case("ignored option", "IgnoreUnknown Nonsense\n" + T + " Nonsense 1\n", names="Nonsense"),
]
