"""Test files are given out from two ends of one line (`tests/scheduling.py`)."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("xdist", reason="pytest-xdist is not installed (make test installs it)")

from tests import scheduling

TESTS = Path(__file__).parents[1]


def test_every_folder_in_the_line_exists() -> None:
    assert [name for name in scheduling._LINE if not (TESTS / name).is_dir()] == []


def test_a_new_folder_stands_in_the_middle() -> None:
    items: list[Any] = [SimpleNamespace(path=TESTS / name / "x.py") for name in ("hosts", "new", "worker")]
    items.sort(key=scheduling._place)
    assert [item.path.parent.name for item in items] == ["worker", "new", "hosts"]


def test_tests_from_elsewhere_stand_in_the_middle(tmp_path: Path) -> None:
    items: list[Any] = [SimpleNamespace(path=path) for path in (TESTS / "hosts/x.py", tmp_path / "x.py")]
    items.sort(key=scheduling._place)
    assert items[0].path.parent == tmp_path


class Node:
    """A test process as pytest-xdist sees it."""

    def __init__(self, number: int) -> None:
        self.gateway = SimpleNamespace(id=f"gw{number}")
        self.given: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.given += indices


def test_processes_take_whole_files_from_their_ends() -> None:
    tests = ["a.py::1", "a.py::2", "b.py::1", "c.py::1", "d.py::1"]
    nodes: list[Any] = [Node(0), Node(1), Node(2)]
    schedule = scheduling._TwoEnds.__new__(scheduling._TwoEnds)
    schedule.workqueue, schedule.assigned_work = OrderedDict(), {}
    schedule.registered_collections = dict.fromkeys(nodes, tests)
    for test in tests:
        schedule.workqueue.setdefault(schedule._split_scope(test), {})[test] = False
    for node in [*nodes, nodes[1]]:
        schedule._assign_work_unit(node)
    assert [node.given for node in nodes] == [[0, 1], [4, 3], [2]]
