"""The rules by which the instances behind one address live and end."""

from __future__ import annotations

import pytest

from flagscale.node.instances import Kind, Sequel, is_lost, kind_of, pause, sequel, silence_allowed
from flagscale.run.state import ServicePhase
from flagscale.values import Service

CHAT = [
    Service("chat", (), "http://a:8000"),
    Service("chat.0", (), "http://a:8001", behind="chat"),
    Service("chat.1", (), "http://a:8002", behind="chat"),
    Service("chat.1.part1", (), behind="chat.1"),
    Service("draft", (), "http://a:9000"),
    Service("large", (), "http://a:9001"),
    Service("large.part1", (), behind="large"),
    Service("generate", ()),
]


def test_kinds_of_services() -> None:
    assert {one.name: kind_of(one, CHAT) for one in CHAT} == {
        "chat": "router",
        "chat.0": "instance",
        "chat.1": "joint",
        "chat.1.part1": "joint",
        "draft": "joint",
        "large": "joint",
        "large.part1": "joint",
        "generate": "joint",
    }


@pytest.mark.parametrize(
    ("kind", "is_first_start", "code", "restarts", "most", "follows"),
    [
        ("joint", False, 1, 0, 5, "end the job"),
        ("instance", True, 1, 0, 5, "end the job"),
        ("router", True, 1, 0, 5, "end the job"),
        ("instance", False, -9, 0, 1, "start again"),
        ("instance", False, 0, 0, 1, "start again"),
        ("instance", False, -9, 1, 1, "go on without it"),
        ("instance", False, -9, 0, 0, "go on without it"),
        ("instance", False, 2, 0, 5, "go on without it"),
        ("router", False, -9, 0, 1, "start again"),
        ("router", False, -9, 1, 1, "end the job"),
        ("router", False, 2, 0, 5, "end the job"),
    ],
)
def test_what_follows_an_end(
    kind: Kind, is_first_start: bool, code: int, restarts: int, most: int, follows: Sequel
) -> None:
    assert sequel(kind, is_first_start, code, restarts, most) == follows


def test_restarts_wait_longer_and_longer() -> None:
    assert [pause("instance", restart) for restart in (1, 2, 3, 7, 2000)] == [1, 2, 4, 60, 60]
    assert [pause("router", restart) for restart in (1, 2, 3, 2000)] == [0, 2, 4, 60]


def test_the_limit_of_silence_is_that_of_loading_until_the_first_answer() -> None:
    assert silence_allowed(True, 20.0, 1800.0) == 20.0
    assert silence_allowed(True, None, 1800.0) is None
    assert silence_allowed(False, None, 1800.0) == 1800.0


@pytest.mark.parametrize(
    ("here", "are_all_here", "silent", "restarts", "lost"),
    [
        (["failed", "ready"], True, 0.0, 0, False),
        (["failed", "restarting"], True, 900.0, 1, False),
        (["failed", "unhealthy"], True, 9e9, 0, False),
        (["failed", "failed"], True, 0.0, 0, True),
        (["failed"], False, 29.0, 0, False),
        (["failed"], False, 31.0, 0, True),
        ([], False, 31.0, 0, True),
        (["failed"], False, 31.0, 1, False),
        (["failed"], False, 601.0, 1, True),
    ],
)
def test_an_endpoint_is_lost_when_no_instance_can_answer_again(
    here: list[ServicePhase], are_all_here: bool, silent: float, restarts: int, lost: bool
) -> None:
    assert is_lost(here, are_all_here, silent, restarts, 600.0) is lost
