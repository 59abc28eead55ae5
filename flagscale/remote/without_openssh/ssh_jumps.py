"""The forms in which `ProxyJump` names hosts, as OpenSSH reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from flagscale.remote.without_openssh.ssh_config_blocks import ConfigError

_HOST = r"""(?:\[(?P<bracketed>[^\]\s]+)\]|(?P<plain>[^\[\]:@/\s"']+))(?::(?P<port>\d{0,5}))?"""
_FORMS = (re.compile(rf"ssh://(?:(?P<user>[^@/\s]+)@)?{_HOST}/?"), re.compile(rf"(?:(?P<user>\S+)@)?{_HOST}"))


@dataclass(frozen=True)
class Jump:
    """A host to log in to; port and user, if it has them, count before the configuration."""

    host: str
    port: int | None = None
    user: str = ""


def read_jumps(text: str) -> tuple[Jump, ...]:
    """Return the hosts of a `ProxyJump`, the first one on the way first.

    Raises:
        ConfigError: one of them has none of the forms `[user@]host[:port]` and `ssh://[user@]host[:port]`.
    """
    return tuple(_read_jump(one) for one in text.split(",")) if text else ()


def _read_jump(text: str) -> Jump:
    is_uri = text.startswith("ssh://")
    found = _FORMS[not is_uri].fullmatch(text)
    port = int(found["port"] or 0) if found else 0
    if not found or port > 65535 or (found["port"] and not port):
        raise ConfigError(f"ProxyJump: `{text}` is not a host; write `user@host:port`")
    user = found["user"] or ""
    return Jump(found["bracketed"] or found["plain"], port or None, unquote(user) if is_uri else user)
