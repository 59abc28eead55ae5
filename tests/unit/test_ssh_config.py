"""Without OpenSSH, the user's SSH files mean what they mean to `ssh`, or are refused by name."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagscale.remote.without_openssh import ssh_config
from flagscale.remote.without_openssh.ssh_config import settings_of
from flagscale.remote.without_openssh.ssh_config_blocks import ConfigError
from flagscale.remote.without_openssh.ssh_jumps import read_jumps


@pytest.fixture
def ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home" / ".ssh"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(ssh_config, "_CONFIGS", ("~/.ssh/config", str(tmp_path / "system")))
    return folder


def refusal(host: str) -> str:
    with pytest.raises(ConfigError) as refused:
        settings_of(host)
    return str(refused.value)


def test_without_a_configuration(ssh: Path) -> None:
    found = settings_of("gpu-1")
    assert (found.address, found.port, found.alias, found.jumps, found.command) == ("gpu-1", 22, "", "", "")
    assert found.identities == tuple(ssh / name for name in ("id_rsa", "id_ecdsa", "id_ed25519"))
    assert found.known_hosts[:2] == (ssh / "known_hosts", ssh / "known_hosts2")
    assert settings_of("gpu-1", 7, "me").port == 7
    assert settings_of("gpu-1", 7, "me").user == "me"


def test_settings_of_included_files_apply(ssh: Path, tmp_path: Path) -> None:
    (ssh / "config.d").mkdir()
    (ssh / "config.d/.10-first.swp").write_bytes(b"\xff")
    (ssh / "config.d/10-first").write_text("User first\nHost gpu-*\n  Port 2201\n")
    (ssh / "config.d/20-second").write_text('Host gpu-1\n  HostName 10.0.0.1\nInclude "deep er"\n')
    (ssh / "deep er").write_text("IdentityFile /a/key\n")
    (ssh / "config").write_text(
        "Include config.d/* # John's\nHost gpu-2\n  HostName 10.0.0.2\n"
        f"  include={tmp_path}/no-such-file\n  HostKeyAlias second\n"
    )
    (tmp_path / "system").write_text("User system\nPort 22\nHostKeyAlias all\n")
    first, second = settings_of("gpu-1"), settings_of("gpu-2")
    assert (first.address, first.port, first.identities) == ("10.0.0.1", 2201, (Path("/a/key"),))
    # Lines before any block, or after an `Include` outside a block, apply to every host.
    assert {one.user for one in (first, second, settings_of("else"))} == {"first"}
    # Lines after an `Include` in a block belong to that block.
    assert [one.alias for one in (first, second)] == ["all", "second"]


def test_a_file_that_is_included_for_some_hosts_has_blocks_of_its_own(ssh: Path) -> None:
    (ssh / "jumps").write_text("Port 7\nHost jump-1\n  User one\nHost *\n  User inner\n")
    (ssh / "config").write_text("Host jump-*\n  Include 'jumps'\nHost *\n  User outer\n")
    assert [settings_of(name).user for name in ("jump-1", "jump-2", "other")] == ["one", "inner", "outer"]
    assert [settings_of(name).port for name in ("jump-1", "other")] == [7, 22]


@pytest.mark.parametrize(
    ("line", "applies"),
    [
        ("Match all", True),
        ("Match host 10.*", True),
        ("Match host gpu-1", False),
        ("Match !host gpu-1", True),
        ("Match originalhost gpu-?,!gpu-2", True),
        ("Match originalhost gpu-2 exec true", False),
        ("Match user me", True),
        ("Match user=you", False),
        ("Match canonical", False),
        ("Match final host 10.0.0.1", True),
        ("Host !gpu-1 *", False),
        ('Host "gpu-1"', True),
        ("Host 10.0.0.1", False),
        ("HOST=gpu-1", True),
    ],
)
def test_conditions_of_a_block(ssh: Path, line: str, applies: bool) -> None:
    (ssh / "config").write_text(f"User me\nHost gpu-1\n HostName 10.0.0.1\n{line}\n Port 7\n")
    assert settings_of("gpu-1").port == (7 if applies else 22)


def test_tokens_and_variables(ssh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", "/k")
    (ssh / "config").write_text(
        "HostName %h.lab\nUser me\nIdentityFile ${KEYS}/%r@%h-%n\nIdentityFile ~/a%%b\nIdentityFile none\n"
        'ProxyCommand nc "%h" %p # %%\n'
    )
    found = settings_of("a", 7)
    assert (found.address, found.command) == ("a.lab", 'nc "a.lab" 7 # %')
    assert found.identities == (Path("/k/me@a.lab-a"), Path.home() / "a%b")
    (ssh / "config").write_text("IdentityFile ${NO_SUCH}/key\n")
    assert refusal("a") == f"{ssh}/config:1: the environment variable NO_SUCH is not set"


def test_options_without_support_are_refused_all_at_once(ssh: Path) -> None:
    (ssh / "config").write_text(
        "Host a\n BindAddress ::1\nHost *\n Compression yes\n StrictHostKeyChecking no\n"
    )
    hint = "install OpenSSH's client (`ssh`), or remove it"
    both = (f"{ssh}/config:2: `BindAddress`", f"{ssh}/config:5: `StrictHostKeyChecking`")
    assert refusal("a") == f"{both[0]} is not supported; {both[1]} is not supported; {hint}"
    assert refusal("b") == f"{both[1]} is not supported; {hint}"
    # Only the first value of an option counts.
    (ssh / "config").write_text("StrictHostKeyChecking yes\nStrictHostKeyChecking no\n")
    settings_of("a")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Match tagged x\n", "config:1: `Match tagged` is not supported; install OpenSSH"),
        ("Match\n", "config:1: `Match` needs a condition"),
        ("Port many\n", "config:1: `many` is not a port"),
        ("HostName a b\n", "config:1: `HostName` needs one value"),
        ("\nHostName 'a\n", "config:2: a quotation does not end"),
        ("HostName %p\n", "config:1: the token `%p` is not supported"),
        ("IdentityFile a%\n", "config:1: the token `%` is not supported"),
        ("Include config\n", "files include each other more than 16 deep"),
        ("HostName a\0b\n", "contains a NUL character"),
    ],
)
def test_a_bad_configuration_is_reported(ssh: Path, text: str, message: str) -> None:
    (ssh / "config").write_text(text)
    assert message in refusal("a")


def test_a_file_that_is_no_text_is_reported(ssh: Path) -> None:
    (ssh / "config").write_bytes(b"Host \xff\n")
    assert refusal("a") == f"{ssh}/config cannot be read: it is not UTF-8 text"


def test_a_changed_configuration_is_read_again(ssh: Path) -> None:
    for port in (7, 777):
        (ssh / "config").write_text(f"Host a\n  Port {port}\n")
        assert settings_of("a").port == port


PIECES = """
    Host Match Include HostName Port User ProxyJump ProxyCommand IdentityFile UserKnownHostsFile all final
    host exec originalhost user a * !* a,b none yes 22 %h %% % %C ${HOME} ${ ~ ~x config " ' \\ = # @
"""


@given(
    st.lists(
        st.lists(st.sampled_from(PIECES.split()) | st.text(max_size=3), max_size=5).map(" ".join), max_size=6
    )
)
def test_whatever_a_configuration_contains_only_its_errors_come_out(lines: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory() as folder:
        path = Path(folder) / "config"
        path.write_bytes("\n".join(lines).encode(errors="surrogatepass"))
        patch.setattr(ssh_config, "_CONFIGS", (str(path),))
        with suppress(ConfigError):
            read_jumps(settings_of("a").jumps)
