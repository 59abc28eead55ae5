"""The command line that runs on a host."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.plans import make_job, make_plan

PLAN = make_plan(Path("/r"), 2, 2, 2, 2)


def test_the_agent_is_followed_by_its_options_and_the_program() -> None:
    words = PLAN.nodes[1].command()
    assert words[:5] == ("/usr/bin/python3", "-m", "megatron.flagscale.torchrun", "--nnodes", "4")
    assert words[words.index("--node-rank") + 1] == "1"
    assert words[-4:] == ("--module", "a.module", "--lr", "1e-3")


def test_a_start_on_all_hosts_uses_the_planned_command() -> None:
    for node in PLAN.nodes:
        assert node.command((0, 1, 2, 3)) == node.command()
    (alone,) = make_plan(Path("/r"), 4).nodes
    assert alone.command((0,)) == alone.command()


@pytest.mark.parametrize(("rank", "place"), [(0, "0"), (1, "1"), (3, "2")])
def test_with_fewer_hosts_node_ranks_are_consecutive(rank: int, place: str) -> None:
    node = PLAN.nodes[rank]
    expected = [*node.command()]
    expected[expected.index("--nnodes") + 1] = "3"
    expected[expected.index("--node-rank") + 1] = place
    assert [*node.command((0, 1, 3))] == expected


def test_options_of_the_program_are_unchanged() -> None:
    words = ("--nnodes", "9", "--node-rank", "8")
    node = make_plan(Path("/r"), job=make_job(2, 2, argv=words)).nodes[0]
    assert node.command((0,))[-4:] == words


def test_a_host_that_does_not_take_part_is_an_error() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        PLAN.nodes[2].command((0, 1, 3))
