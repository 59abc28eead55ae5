"""Hostfiles of other launchers are refused with the line to write, and that line is accepted."""

from __future__ import annotations

import re

import pytest

from flagscale.errors import UserError
from flagscale.plan.foreign_lines import FORM
from flagscale.plan.hostfile import HostLine, parse_hostfile

SSH = "in ~/.ssh/config"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        # MPICH, Hydra, Horovod, MVAPICH
        ("w1:4", "write `w1 slots=4`"),
        ("w1.example.org:4:hca0", "write `w1.example.org slots=4`"),
        ("node[1-4]:8", "write `node[1-4] slots=8`"),
        ("w1:4,w2:4", "write `w1 slots=4` and `w2 slots=4`, each on a line of its own"),
        # Open MPI
        ("w1 slots=4 max_slots=8", "write `w1 slots=4`"),
        ("w1 slots=4 max-slots=8", "write `w1 slots=4`"),
        ("w1", "write `w1 slots=N`"),
        # Slurm, LSF, bash
        ("w1 slots=2(x3)", "write `w1 slots=2`"),
        ("w1 4", "write `w1 slots=4`"),
        ("node{1..4} slots=2", "write `node[1-4] slots=2`"),
        ("node{1,3} slots=2", "write `node[1,3] slots=2`"),
        # What `ssh` takes
        ("[2001:db8::1] slots=2", "write `2001:db8::1 slots=2`"),
        ("[::2]:2222 slots=8", f"write `::2 slots=8`, and `Port 2222` below `Host ::2` {SSH}"),
        ("al@192.0.2.1 slots=2", f"write `192.0.2.1 slots=2`, and `User al` below `Host 192.0.2.1` {SSH}"),
        ("ssh://bob@w1:22 np=3", f"write `w1 slots=3`, and `User bob` and `Port 22` below `Host w1` {SSH}"),
        ("w1 port=2222 slots=4", f"write `w1 slots=4`, and `Port 2222` below `Host w1` {SSH}"),
        ("w1 ssh_port=29 np=4", f"write `w1 slots=4`, and `Port 29` below `Host w1` {SSH}"),
        ("w1 slots=4 user=bob", f"write `w1 slots=4`, and `User bob` below `Host w1` {SSH}"),
        (
            "w1 ansible_host=192.0.2.1 ansible_ssh_user=al",
            f"write `w1 slots=N`, and `User al` and `HostName 192.0.2.1` below `Host w1` {SSH}",
        ),
        ("w1:2222", "write `w1 slots=N`"),
        ("w1:22", "write `w1 slots=N`"),
        # Slips
        ("w1 slots = 2", "write `w1 slots=2`"),
        ("w1 slots: 2 type=A800", "write `w1 slots=2 type=A800`"),
        ("w1, slots=2", "write `w1 slots=2`"),
        ("w1;slots=2", "write `w1 slots=2`"),
        ("w1. slots=2", "write `w1 slots=2`"),
        ("slots=2 w1", "write `w1 slots=2`"),
        ("w1 Slots=2", "write `w1 slots=2`"),
        ("w1 gpus=2", "write `w1 slots=2`"),
        ("w1 slots=2,w2 slots=3", "write `w1 slots=2` and `w2 slots=3`, each on a line of its own"),
        # No clear meaning
        ("[gpus]", FORM),
        ("- w1", FORM),
        ("{w1: 4}", FORM),
        ("10.0.0.1 w1 slots=2", FORM),
        ("10.0.0.300:4", FORM),
    ],
)  # fmt: skip
def test_the_hint_contains_a_line_that_is_accepted(line: str, hint: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_hostfile(line, "hosts")
    (problem,) = raised.value.problems
    assert (problem.where, problem.hint) == ("hosts:1", hint)
    if hint != FORM:
        suggested = [part.replace("=N", "=1") for part in re.findall("`(.+?)`", hint) if "slots=" in part]
        assert parse_hostfile("\n".join(suggested), "hosts")


def test_every_line_of_a_long_file_has_its_hint() -> None:
    with pytest.raises(UserError) as raised:
        parse_hostfile("".join(f"w{number}:8\n" for number in range(1000)), "hosts")
    suggested = "\n".join(
        problem.hint.removeprefix("write `").removesuffix("`") for problem in raised.value.problems
    )
    assert parse_hostfile(suggested, "hosts") == tuple(HostLine(f"w{number}", 8) for number in range(1000))
