"""A server that is stopped finishes its pictures before its engine stops."""

from __future__ import annotations

import threading

from vllm_flagscale.emu3.finishing import Begun, finish_before_shutdown


class Engine:
    """Remembers how it was stopped."""

    def __init__(self) -> None:
        self.stopped: list[float | None] = []

    def shutdown(self, timeout: float | None = None) -> None:
        self.stopped.append(timeout)


def test_the_engine_stops_after_the_pictures() -> None:
    engine, begun = Engine(), Begun()
    finish_before_shutdown(engine, begun)
    with begun.one():
        stopping = threading.Thread(target=engine.shutdown, kwargs={"timeout": 60})
        stopping.start()
        while not begun.is_stopping:
            pass
        assert engine.stopped == []
    stopping.join(30)
    assert len(engine.stopped) == 1
    assert 0 < (engine.stopped[0] or 0) < 60
    # vLLM calls it again when its context ends, in the thread that the requests need.
    with begun.one():
        engine.shutdown(timeout=60)
    assert engine.stopped[1:] == [60]


def test_a_picture_that_takes_too_long_is_given_up() -> None:
    engine, begun = Engine(), Begun()
    finish_before_shutdown(engine, begun)
    with begun.one():
        engine.shutdown(timeout=0.1)
    assert len(engine.stopped) == 1


def test_a_server_that_ends_requests_at_once_does_not_wait() -> None:
    engine, begun = Engine(), Begun()
    finish_before_shutdown(engine, begun)
    with begun.one():
        engine.shutdown(timeout=0)
    assert (engine.stopped, begun.is_stopping) == ([0], True)
