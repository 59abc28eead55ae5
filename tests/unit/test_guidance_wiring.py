"""The arguments that make an engine guide, and which scheduler it gets."""

from __future__ import annotations

import argparse
import importlib
import sys
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from vllm_flagscale.guidance.wiring import PROCESSOR, SCHEDULER, add_argument, wire


def arguments(*words: str, **engine: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_argument(parser)
    parser.set_defaults(**{"scheduler_cls": None, "logits_processors": None, **engine})
    return parser.parse_args(words)


def test_nothing_changes_without_guidance() -> None:
    wire(given := arguments(scheduler_cls="a.b.C"))
    assert (given.scheduler_cls, given.logits_processors) == ("a.b.C", None)


def test_the_processors_of_the_user_are_kept() -> None:
    given = arguments("--guidance", logits_processors=["a:B"])
    wire(given)
    wire(given)
    assert (given.scheduler_cls, given.logits_processors) == (SCHEDULER, ["a:B", PROCESSOR])


def test_another_scheduler_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        wire(arguments("--guidance", scheduler_cls="a.b.C"))
    assert capsys.readouterr().out.startswith("flagscale: error: --scheduler-cls a.b.C cannot be combined")


def made(name: str, **given: Any) -> tuple[str, dict[str, Any]]:
    return name, given


@pytest.mark.parametrize(("is_async", "name"), [(True, "GuidedAsyncScheduler"), (False, "GuidedScheduler")])
def test_the_scheduler_is_the_one_that_vllm_decided_for(
    monkeypatch: pytest.MonkeyPatch, is_async: bool, name: str
) -> None:
    made = {
        one: partial(lambda one, **given: (one, given), one)
        for one in ("GuidedScheduler", "GuidedAsyncScheduler")
    }
    monkeypatch.setitem(sys.modules, "vllm_flagscale.guidance.scheduler", SimpleNamespace(**made))
    config = SimpleNamespace(scheduler_config=SimpleNamespace(async_scheduling=is_async))
    module, _, function = SCHEDULER.rpartition(".")
    make = getattr(importlib.import_module(module), function)
    assert make(vllm_config=config, log_stats=True) == (name, {"vllm_config": config, "log_stats": True})
