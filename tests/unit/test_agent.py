"""What the launcher of the ranks is started with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flagscale.node.agent import argv_of
from tests.unit.plans import make_job, make_plan, options

PLAN = make_plan(Path("/r"), 2, 2, 2, 2)


def test_where_all_take_part_nothing_changes() -> None:
    for node in PLAN.nodes:
        assert argv_of(node, (0, 1, 2, 3)) == node.argv
    (alone,) = make_plan(Path("/r"), 4).nodes
    assert argv_of(alone, (0,)) == alone.argv


@pytest.mark.parametrize(("rank", "place"), [(0, "0"), (1, "1"), (3, "2")])
def test_with_fewer_hosts_the_places_have_no_gap(rank: int, place: str) -> None:
    node = PLAN.nodes[rank]
    before, after = options(node), options(replace(node, argv=argv_of(node, (0, 1, 3))))
    assert (after["--nnodes"], after["--node-rank"]) == ("3", place)
    assert {name for name in before if before[name] != after[name]} <= {"--nnodes", "--node-rank"}


def test_the_programs_own_options_stay() -> None:
    words = ("--nnodes", "9", "--node-rank", "8")
    node = make_plan(Path("/r"), job=make_job(2, 2, argv=words)).nodes[0]
    assert argv_of(node, (0,))[-4:] == words


def test_who_does_not_take_part_has_no_command() -> None:
    with pytest.raises(ValueError, match="not in tuple"):
        argv_of(PLAN.nodes[2], (0, 1, 3))
