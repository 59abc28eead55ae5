"""Which names can be hosts, and which hosts a range stands for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flagscale.config.host_names import canonical, compress, expand, refusal
from flagscale.config.schema import Runner

HOSTS = ("w1", "W_1.example.org", "a", "_x", "10.0.0.1", "::1", "2001:db8::1", "1and1.com", "node.7")
NO_HOSTS = (
    *("", "-w1", "w1-", ".w1", "w1.", "w..1", "w/1", "w 1", "w\n1", "ünï", "x" * 254, "a@w1", "@w1"),
    *("w1:22", "w1:4:hca", "[::1]", "[::1]:22", "fe80::1%eth0", "1::2::3", "::", "ff02::1"),
    *("10.0.0.300", "256.1.1.1", "010.0.0.1", "1.2.3", "1.2.3.4.5", "7", "0x7f.1"),
    *("0.0.0.0", "224.0.0.1", "255.255.255.255"),
)


@pytest.mark.parametrize("name", HOSTS)
def test_a_name_or_an_address_can_be_a_host(name: str) -> None:
    assert refusal(name) == ""
    assert Runner(master_addr=name).master_addr == name


@pytest.mark.parametrize("name", NO_HOSTS)
def test_anything_else_cannot(name: str) -> None:
    assert f"`{name}`" in refusal(name)
    with pytest.raises(ValidationError):
        Runner(master_addr=name)


def test_the_reason_is_told() -> None:
    assert refusal("w1:22") == "`w1:22` has a port or a number of processes in it"
    assert "four numbers, 0 to 255" in refusal("10.0.0.300")
    assert "valid on one host only" in refusal("fe80::1%eth0")


@pytest.mark.parametrize(
    "names",
    [("w1", "W1", "w1."), ("localhost", "127.0.0.1", "::1", "0:0::1", "LOCALHOST", "::ffff:127.0.0.1"),
     ("2001:db8::1", "2001:DB8:0:0::1"), ("10.0.0.1", "::ffff:10.0.0.1")],
)  # fmt: skip
def test_spellings_of_one_host_are_equal(names: tuple[str, ...]) -> None:
    assert len(set(map(canonical, names))) == 1
    assert canonical("127.0.0.2") != canonical("localhost")


@pytest.mark.parametrize(
    ("names", "each"),
    [
        ("w1", ["w1"]),
        ("[2001:db8::1]", ["[2001:db8::1]"]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("n[0-15]", [f"n{number}" for number in range(16)]),
        ("n[008-011]", ["n008", "n009", "n010", "n011"]),
        ("n[1,3-4,07]", ["n1", "n3", "n4", "n07"]),
        ("r[1-2]n[1-2].x,login", ["r1n1.x", "r1n2.x", "r2n1.x", "r2n2.x", "login"]),
    ],
)
def test_a_range_stands_for_its_hosts_in_order(names: str, each: list[str]) -> None:
    assert expand(names) == each


@pytest.mark.parametrize(
    "names",
    ["n[1-4", "n1-4]", "n[[1-2]]", "n[]", "n[a-b]", "n[1-2-3]", "n[4-1]", "n[099-1000]", "n[1-99999]", "n[٣]",
     "n[1-100][1-100][1-100]", f"n[{'9' * 5000}]", "w1,", ",w1", "n[1,]"],
)  # fmt: skip
def test_a_range_that_is_not_clear_is_refused(names: str) -> None:
    with pytest.raises(ValueError, match=r"\[|\]|comma"):
        expand(names)


@given(st.text(alphabet="w1[]-,:.@0 x", max_size=12))
def test_any_text_is_expanded_or_refused(text: str) -> None:
    try:
        names = expand(text)
    except ValueError:
        return
    assert names
    assert all(canonical(name) for name in names if not refusal(name))


@pytest.mark.parametrize(
    ("names", "ranges"),
    [
        (["node001", "node002", "node003", "node7", "login"], "node[001-003,7],login"),
        (["n9", "n10", "n11"], "n[9-11]"),
        (["n09", "n10", "n011"], "n[09-10,011]"),
        (["b2", "a1", "b1"], "b[1-2],a1"),
        (["n1-ib0", "n2-ib0", "n3-ib0"], "n[1-3]-ib0"),
        (["10.0.0.1", "10.0.0.2", "10.0.1.1"], "10.0.0.[1-2],10.0.1.1"),
        (["fd00::1", "fd00::2"], "fd00::1,fd00::2"),
        ([f"node{number:03}" for number in range(1, 998)], "node[001-997]"),
        (["login"], "login"),
        ([], ""),
    ],
)
def test_names_are_written_as_ranges(names: list[str], ranges: str) -> None:
    assert compress(names) == ranges


@given(st.sets(st.from_regex(r"[ab]?[0-9]{1,3}(-[0-9]{1,2})?x?", fullmatch=True), min_size=1))
def test_ranges_stand_for_the_same_names(names: set[str]) -> None:
    assert sorted(expand(compress([*names]))) == sorted(names)
