"""The hostfile: its valid lines, and a report of every bad line with its number."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagscale.errors import UserError
from flagscale.plan.hostfile import HostLine, parse_hostfile, read_hostfile


def bad(text: str) -> list[str]:
    with pytest.raises(UserError) as raised:
        parse_hostfile(text, "hosts")
    return [f"{problem.where}: {problem.what}" for problem in raised.value.problems]


def test_hosts_in_order_with_and_without_type() -> None:
    text = """
    # the rack on the left
    worker0 slots=8 type=A100   # the master
    worker1   type=A800  slots=4

    10.0.0.3\tslots=1
    ::1 slots=2
    node-3.cluster_a.example.org slots=16
    """
    assert parse_hostfile(text, "hosts") == (
        HostLine("worker0", 8, "A100"),
        HostLine("worker1", 4, "A800"),
        HostLine("10.0.0.3", 1),
        HostLine("::1", 2),
        HostLine("node-3.cluster_a.example.org", 16),
    )


def test_every_bad_line_is_reported() -> None:
    lines = [
        "ok slots=1",
        "w1",
        "w2 slots=0",
        "w3 slots=eight",
        "ok slots=2",
        "w4 slots=1 junk",
        "w5 slots=1 slots=2",
        "w/6 slots=1",
        "w7 slots=-1",
    ]
    assert bad("\n".join(lines)) == [
        "hosts:2: `slots=N` is missing",
        "hosts:3: `slots=0` is not a number from 1 to 1024",
        "hosts:4: `slots=eight` is not a number from 1 to 1024",
        "hosts:5: host `ok` is listed twice: line 1",
        "hosts:6: unknown field `junk`",
        "hosts:7: `slots` is given twice",
        "hosts:8: `w/6` is not a valid host name or address",
        "hosts:9: `slots=-1` is not a number from 1 to 1024",
    ]


@pytest.mark.parametrize(
    "line", ["w slots=1 type=", "w slots= type=A", "w slots=1 port=22", "w slots = 8", "-w slots=1"]
)
def test_lines_that_v060_partly_accepted_are_errors(line: str) -> None:
    assert len(bad(line)) == 1


@pytest.mark.parametrize("slots", ["9" * 5000, "٣", "1_0", "+1", "1.0"])
def test_unusual_numbers_of_slots_are_errors(slots: str) -> None:
    assert len(bad(f"w slots={slots}")) == 1


def test_ranges_stand_for_their_hosts() -> None:
    text = "node[001-003] slots=2 type=A100\nlogin,rack[1-2]-[7,9].site slots=1"
    assert [(host.name, host.slots, host.type) for host in parse_hostfile(text, "hosts")] == [
        *((f"node00{number}", 2, "A100") for number in (1, 2, 3)),
        *(
            (name, 1, "")
            for name in ("login", "rack1-7.site", "rack1-9.site", "rack2-7.site", "rack2-9.site")
        ),
    ]


@pytest.mark.parametrize(
    ("second", "what"),
    [
        ("w1", "host `w1` is listed twice: it is `W1` of line 1"),
        ("W1", "host `W1` is listed twice: line 1"),
        ("w[0-1]", "host `w1` is listed twice: it is `W1` of line 1"),
        ("127.0.0.1", "host `127.0.0.1` is listed twice: it is `localhost` of line 2"),
        ("::1", "host `::1` is listed twice: it is `localhost` of line 2"),
        ("2001:DB8:0::1", "host `2001:DB8:0::1` is listed twice: it is `2001:db8::1` of line 3"),
        ("::ffff:10.0.0.1", "host `::ffff:10.0.0.1` is listed twice: it is `10.0.0.1` of line 4"),
    ],
)
def test_a_host_under_two_spellings_is_listed_twice(second: str, what: str) -> None:
    names = ["W1", "localhost", "2001:db8::1", "10.0.0.1", second]
    assert bad("".join(f"{name} slots=1\n" for name in names)) == [f"hosts:5: {what}"]


def test_a_host_per_slot_is_refused_with_the_line_for_all_of_them() -> None:
    """The form of PBS."""
    with pytest.raises(UserError) as raised:
        parse_hostfile("w1\nw1\nw2\n", "hosts")
    assert [problem.hint for problem in raised.value.problems] == [
        "write `w1 slots=2` once",
        "write `w1 slots=2` once",
        "write `w2 slots=N`",
    ]


def test_a_hostfile_without_hosts_is_an_error() -> None:
    assert bad("# nothing\n\n") == ["hosts: the hostfile lists no hosts"]


def test_an_unreadable_hostfile_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="No such file"):
        read_hostfile(tmp_path / "missing")
    with pytest.raises(UserError, match="directory"):
        read_hostfile(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="not UTF-8"):
        read_hostfile(tmp_path / "binary")


def test_a_byte_order_mark_and_crlf_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_bytes(b"\xef\xbb\xbfw0 slots=8\r\nw1 slots=8\r\n")
    assert [host.name for host in read_hostfile(tmp_path / "hosts")] == ["w0", "w1"]


@given(st.text(max_size=60))
def test_any_text_is_parsed_or_refused(text: str) -> None:
    hosts: tuple[HostLine, ...] = ()
    with contextlib.suppress(UserError):
        hosts = parse_hostfile(text, "hosts")
        assert hosts
    assert all(host.slots >= 1 and "/" not in host.name for host in hosts)


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_a_file_without_an_end_is_refused(kind: str, tmp_path: Path) -> None:
    path = Path(kind) if kind.startswith("/") else tmp_path / kind
    if not path.exists():
        os.mkfifo(path)
    with pytest.raises(UserError, match="a pipe or a device, not a file"):
        read_hostfile(path)
