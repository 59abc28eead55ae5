"""Forms of `ProxyJump`."""

from __future__ import annotations

import pytest

from flagscale.remote.without_openssh.ssh_config_blocks import ConfigError
from flagscale.remote.without_openssh.ssh_jumps import Jump, read_jumps


@pytest.mark.parametrize(
    ("text", "jumps"),
    [
        ("", []),
        ("a", [Jump("a")]),
        ("a:", [Jump("a")]),
        ("me@a:7", [Jump("a", 7, "me")]),
        ("me@dom@a", [Jump("a", None, "me@dom")]),
        ("[::1]", [Jump("::1")]),
        ("me@[fe80::1%eth0]:7", [Jump("fe80::1%eth0", 7, "me")]),
        ("ssh://a", [Jump("a")]),
        ("ssh://me@a:7", [Jump("a", 7, "me")]),
        ("ssh://me%40dom@a/", [Jump("a", None, "me@dom")]),
        ("a,me@b:7,ssh://c", [Jump("a"), Jump("b", 7, "me"), Jump("c")]),
    ],
)
def test_the_forms(text: str, jumps: list[Jump]) -> None:
    assert read_jumps(text) == tuple(jumps)


BAD = ("a,", "a:0", "a:70000", "a:b", "::1", "[::1", "ssh://", "ssh://a/b", "a b")


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ConfigError, match=r"ProxyJump: `.*` is not a host; write `user@host:port`"):
        read_jumps(text)
