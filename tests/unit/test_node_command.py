"""The command line that a host starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.plans import make_job, make_plan

PLAN = make_plan(Path("/r"), 2, 2, 2, 2)


def test_the_launcher_comes_first_then_its_options_then_the_program() -> None:
    words = PLAN.nodes[1].command()
    assert words[:5] == ("/usr/bin/python3", "-m", "megatron.flagscale.torchrun", "--nnodes", "4")
    assert words[words.index("--node-rank") + 1] == "1"
    assert words[-4:] == ("--module", "a.module", "--lr", "1e-3")


def test_a_start_of_all_hosts_changes_nothing() -> None:
    for node in PLAN.nodes:
        assert node.command((0, 1, 2, 3)) == node.command()
    (alone,) = make_plan(Path("/r"), 4).nodes
    assert alone.command((0,)) == alone.command()


@pytest.mark.parametrize(("rank", "place"), [(0, "0"), (1, "1"), (3, "2")])
def test_with_fewer_hosts_the_places_have_no_gap(rank: int, place: str) -> None:
    node = PLAN.nodes[rank]
    expected = [*node.command()]
    expected[expected.index("--nnodes") + 1] = "3"
    expected[expected.index("--node-rank") + 1] = place
    assert [*node.command((0, 1, 3))] == expected


def test_the_options_of_the_program_stay() -> None:
    words = ("--nnodes", "9", "--node-rank", "8")
    node = make_plan(Path("/r"), job=make_job(2, 2, argv=words)).nodes[0]
    assert node.command((0,))[-4:] == words


def test_a_host_that_does_not_take_part_has_no_command() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        PLAN.nodes[2].command((0, 1, 3))
