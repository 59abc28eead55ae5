"""Known host keys are found as `ssh` finds them."""

from __future__ import annotations

from pathlib import Path

import pytest
from paramiko import Ed25519Key
from paramiko.hostkeys import HostKeys

from flagscale.remote.without_openssh.known_hosts import known_keys
from flagscale.remote.without_openssh.ssh_config_blocks import ConfigError

KEYS = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO7rJ8pQ2n0y1Wl2xkYo2D1Zb8m0b0r5m5yH2oS9i2kA",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGNqYWRrbGphc2Rsa2phc2xkamFsc2tkamFsc2tkamFB",
)


def found(path: Path, name: str) -> list[str]:
    return [f"ssh-ed25519 {key.get_base64()}" for key in known_keys([path], name)]


def test_keys_are_found_by_name_pattern_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    hashed = HostKeys.hash_host("10.0.0.9")
    path.write_text(
        f"# a comment\n\nnode1,10.0.0.1 {KEYS[0]}\n[node1]:2222 {KEYS[1]}\nnode1 {KEYS[1]}\n"
        f"{hashed} {KEYS[0]}\n*.lab,!bad.lab {KEYS[0]} a word\nx?y {KEYS[1]}\n"
        f"half a line\nnode3 ssh-ed25519 !!!\nnode3 ssh-ed25519 AAAA\n|1|x|y {KEYS[0]}\n|1| {KEYS[0]}\n"
        f"node3 ssh-unheard-of AAAA\n"
    )
    first, second = KEYS
    expected = {
        "node1": [first, second],
        "10.0.0.1": [first],
        "[node1]:2222": [second],
        "10.0.0.9": [first],
        "a.lab": [first],
        "bad.lab": [],
        "xzy": [second],
        "node3": [],
        "node": [],
        "10.0.0.11": [],
    }
    assert {name: found(path, name) for name in expected} == expected
    assert all(isinstance(key, Ed25519Key) for key in known_keys([path], "node1"))
    assert known_keys([tmp_path / "none"], "node1") == []


@pytest.mark.parametrize("marker", ["@revoked", "@cert-authority"])
def test_a_marker_is_refused_for_the_hosts_of_its_line(tmp_path: Path, marker: str) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"node1,node2 {KEYS[0]}\n{marker} node2,{HostKeys.hash_host('node3')} {KEYS[1]}\n")
    assert found(path, "node1") == [KEYS[0]]
    for name in ("node2", "node3"):
        with pytest.raises(ConfigError, match=f"known_hosts:2: `{marker}` is not supported; install OpenSSH"):
            known_keys([path], name)
