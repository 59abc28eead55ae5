"""Random configurations: without OpenSSH they mean what `ssh -G` prints, or they are refused."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from flagscale.remote.openssh import client as openssh
from flagscale.remote.without_openssh import ssh_config
from flagscale.remote.without_openssh.ssh_config import HostSettings, settings_of
from flagscale.remote.without_openssh.ssh_config_blocks import ConfigError
from flagscale.remote.without_openssh.ssh_jumps import read_jumps
from flagscale_testing.farm.credentials import account

VALUES = {
    "HostName": ["10.0.0.1", "%h.lab", "x", "%%h", "'q'", '"10.0.0.2" # a comment', "none"],
    "Port": ["1", "22", "7", "'8'", "022"],
    "User": ["u", "root", '"u v"', "u\\ v", "none"],
    "IdentityFile": ["/k/%h", "/k/%r-%n", "~/.ssh/z", '"/k/a b"', "none", "/k/a\\b", "/k/a'b'c", "/k/%p%%"],
    "ProxyJump": ["j", "none", "u@j:7", "c,d", "ssh://u@j:8", "[::1]:9", "u@[::1]", "j:", "NONE", "j # one"],
    "ProxyCommand": ["nc %h %p", "none", "'nc' \"%h\" %p # x", "exec nc %n", "NONE"],
    "HostKeyAlias": ["other", "none"],
    "IdentitiesOnly": ["yes", "no", "true", "YES"],
    "Compression": ["yes"],
    "StrictHostKeyChecking": ["yes", "ask", "no"],
}
PATTERNS = ["a", "b", "a b", "*", "!a *", "a*", "?", "10.0.0.?", "!*", "a,b"]
CRITERIA = [
    "final",
    "!final",
    "canonical",
    "host a",
    "host 10.*",
    "!host *.lab",
    "originalhost a,b",
    "user u",
]


def configuration(rng: random.Random, folder: Path, lines: int) -> str:
    def line() -> str:
        kind, space = rng.random(), rng.choice([" ", "\t", " = ", "="])
        if kind < 0.2:
            return f"Host{space}{rng.choice(PATTERNS)}"
        if kind < 0.4:
            return (
                "Match all" if kind < 0.22 else "Match " + " ".join(rng.sample(CRITERIA, rng.choice([1, 2])))
            )
        if kind < 0.45:
            return f"Include {folder}/included*"
        name = rng.choice([*VALUES])
        return f" {rng.choice([name, name.lower()])}{space}{rng.choice(VALUES[name])}"

    return "".join(f"{line()}\n" for _ in range(lines))


def by_ssh(path: Path, host: str) -> dict[str, list[str]]:
    words = ["ssh", "-F", str(path), "-G", host]
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    found: dict[str, list[str]] = {}
    for line in printed.splitlines():
        name, _, value = line.partition(" ")
        found.setdefault(name, []).append(value)
    return found


def expanded(text: str, tokens: Mapping[str, str]) -> str:
    """Return a text with its tokens, which `ssh -G` prints as they were written."""
    for token, value in tokens.items():
        text = text.replace(token, value)
    return text


def settings_or_none(host: str) -> HostSettings | None:
    """Return the settings of a host; None if its configuration has the one option that is not supported."""
    try:
        return settings_of(host)
    except ConfigError as error:
        if "stricthostkeychecking` is not supported" not in str(error).lower():
            raise
        return None


SEEDS = [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 40))]


@pytest.mark.skipif(not openssh.program(), reason="OpenSSH's client is not installed")
@pytest.mark.parametrize("seed", SEEDS)
def test_both_readers_agree(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, agreed = random.Random(seed), 0
    monkeypatch.setenv("HOME", account().pw_dir)
    for folder in [tmp_path / str(number) for number in range(25)]:
        folder.mkdir()
        path, host = folder / "config", rng.choice(["a", "b", "10.0.0.1"])
        path.write_text(configuration(rng, folder, 9))
        for name in ("included-1", "included-2"):
            (folder / name).write_text(configuration(rng, folder, 3).replace("Include", "#"))
        monkeypatch.setattr(ssh_config, "_CONFIGS", (str(path),))
        if (ours := settings_or_none(host)) is None:
            continue
        theirs = by_ssh(path, host)
        agreed += 1
        assert (ours.address, str(ours.port)) == (theirs["hostname"][0], theirs["port"][0])
        assert (ours.user, ours.alias) == (theirs["user"][0], theirs.get("hostkeyalias", [""])[0])
        assert ours.only_identities == (theirs["identitiesonly"] == ["yes"])
        tokens = {"%%": "\0", "%h": ours.address, "%p": str(ours.port), "%r": ours.user, "%n": host}
        tokens["\0"] = "%"
        assert ours.command == expanded(theirs.get("proxycommand", [""])[0], tokens)
        assert read_jumps(ours.jumps) == read_jumps(theirs.get("proxyjump", [""])[0])
        identities = [os.path.expanduser(expanded(one, tokens)) for one in theirs["identityfile"]]
        if "~/.ssh/id_ecdsa" not in theirs["identityfile"]:  # the defaults differ between versions
            assert [str(one) for one in ours.identities] == [one for one in identities if one != "none"]
    assert agreed > 5
