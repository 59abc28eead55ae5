"""The user's SSH files have the same meaning here as for `ssh`."""

from __future__ import annotations

from pathlib import Path

import pytest
from paramiko import Ed25519Key
from paramiko.hostkeys import HostKeys

from flagscale.remote import ssh_files
from flagscale.remote.ssh_files import ConfigError, known_keys, settings_of

KEYS = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIO7rJ8pQ2n0y1Wl2xkYo2D1Zb8m0b0r5m5yH2oS9i2kA",
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGNqYWRrbGphc2Rsa2phc2xkamFsc2tkamFsc2tkamFB",
)


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home" / ".ssh"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(ssh_files, "_CONFIGS", (Path("~/.ssh/config"), tmp_path / "system"))
    return folder


def test_settings_of_included_files_apply(ssh: Path, tmp_path: Path) -> None:
    (ssh / "config.d").mkdir()
    (ssh / "config.d/10-first").write_text("User first\nHost gpu-*\n  Port 2201\n")
    (ssh / "config.d/20-second").write_text('Host gpu-1\n  HostName 10.0.0.1\nInclude "deep er"\n')
    (ssh / "deep er").write_text("IdentityFile /a/key\n")
    (ssh / "config").write_text(
        "Include config.d/*\nConnectTimeout 3\nHost gpu-2\n  HostName 10.0.0.2\n"
        f"  include={tmp_path}/no-such-file\n  ForwardAgent yes\n"
    )
    (tmp_path / "system").write_text("User system\nPort 22\nCompression yes\n")
    first, second = settings_of("gpu-1"), settings_of("gpu-2")
    assert (first["hostname"], first["port"], first["identityfile"]) == ("10.0.0.1", "2201", ["/a/key"])
    # Lines before any block, or after an `Include` outside a block, apply to every host.
    assert {one["user"] for one in (first, second, settings_of("else"))} == {"first"}
    assert {one["connecttimeout"] for one in (first, second, settings_of("else"))} == {"3"}
    # Lines after an `Include` in a block belong to that block.
    assert (second["hostname"], second["forwardagent"]) == ("10.0.0.2", "yes")
    assert "forwardagent" not in first
    assert settings_of("else")["compression"] == "yes"


def test_common_forms_of_include(ssh: Path, tmp_path: Path) -> None:
    """Red Hat's system file, files of editors, folders, comments, and blocks for some hosts only."""
    (ssh / "config.d/folder").mkdir(parents=True)
    (ssh / "config.d/.10-first.swp").write_bytes(b"\xff")
    (ssh / "config.d/50-redhat.conf").write_text("Match final all\n  GSSAPIAuthentication yes\n")
    (ssh / "for jumps").write_text("Compression yes\nHost *\n  User inner\n")
    (ssh / "config").write_text(
        "Include config.d/* # John's\nHost jump-*\n  Include 'for jumps'\nHost *\n  User outer\n"
    )
    assert settings_of("jump-1")["compression"] == "yes"
    assert "compression" not in settings_of("other")
    assert {settings_of(name)["user"] for name in ("jump-1", "other")} == {"outer"}
    (ssh / "config").write_text("Include 'config.d\n")
    with pytest.raises(ConfigError, match=r"\.ssh/config cannot be read: No closing quotation"):
        settings_of("a")


def test_a_file_may_include_itself(ssh: Path) -> None:
    (ssh / "config").write_text("Include config\nHost a\n  Port 7\n")
    assert settings_of("a")["port"] == "7"


def test_a_changed_configuration_is_read_again(ssh: Path) -> None:
    (ssh / "config").write_text("Host a\n  Port 7\n")
    assert settings_of("a")["port"] == "7"
    (ssh / "config").write_text("Host a\n  Port 777\n")
    assert settings_of("a")["port"] == "777"


def test_an_unreadable_configuration_is_reported(ssh: Path) -> None:
    (ssh / "config").write_bytes(b"Host \xff\n")
    with pytest.raises(ConfigError, match=r"\.ssh/config cannot be read"):
        settings_of("a")


def names_of(path: Path, *asked: str) -> dict[str, list[str]]:
    return {name: [f"ssh-ed25519 {key.get_base64()}" for key in known_keys([path], name)] for name in asked}


def test_keys_are_found_by_name_pattern_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    hashed = HostKeys.hash_host("10.0.0.9")
    path.write_text(
        f"# a comment\n\nnode1,10.0.0.1 {KEYS[0]}\n[node1]:2222 {KEYS[1]}\nnode1 {KEYS[1]}\n"
        f"{hashed} {KEYS[0]}\n*.lab,!bad.lab {KEYS[0]} a word\nx?y {KEYS[1]}\n"
        f"half a line\nnode3 ssh-ed25519 !!!\nnode3 ssh-ed25519 AAAA\n@revoked node4 {KEYS[0]}\n"
        f"node3 ssh-unheard-of AAAA\n"
    )
    first, second = KEYS
    assert names_of(path, "node1", "10.0.0.1", "[node1]:2222", "10.0.0.9", "a.lab", "bad.lab", "xzy") == {
        "node1": [first, second],
        "10.0.0.1": [first],
        "[node1]:2222": [second],
        "10.0.0.9": [first],
        "a.lab": [first],
        "bad.lab": [],
        "xzy": [second],
    }
    assert not any(names_of(path, "node3", "node4", "node", "10.0.0.11").values())
    assert list(known_keys([tmp_path / "none"], "node1")) == []


def test_keys_have_their_type(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"node1 {KEYS[0]}\n")
    assert all(isinstance(key, Ed25519Key) for key in known_keys([path], "node1"))
