"""The rules that the launcher checks, held against the engine's own: what passes here is accepted there."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from flagscale.config.catalog import load_catalog
from flagscale.config.engine_args import FlatKey, render
from flagscale.config.source_map import SourceMap
from flagscale.engines.megatron.adapter import CATALOG
from flagscale.errors import Problem
from tests.unit.conftest import TASK
from tests.unit.test_degrees import GOOD, SHORT

pytestmark = pytest.mark.filterwarnings("ignore")

FOR_THE_ENGINE = {"save": "checkpoints", "eval_interval": 100, "apply_rope_fusion": False}
"""What the launcher and the worker add; no TransformerEngine, so no fused rotary embedding."""


@pytest.fixture
def engine_accepts(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any], int], None]:
    """Validate task keys as the engine does on so many ranks; it asks for the age of the GPU."""
    import torch

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(major=9, minor=0))
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    monkeypatch.setenv("RANK", "0")

    def validate(tree: dict[str, Any], ranks: int) -> None:
        from megatron.training.argument_utils import gpt_config_from_args
        from megatron.training.arguments import parse_args, validate_args

        from megatron.flagscale.args import add_flagscale_args

        problems: list[Problem] = []
        leaves = [FlatKey(name, value, name) for name, value in tree.items()]
        argv = render(leaves, load_catalog(CATALOG), SourceMap(), problems).argv
        assert problems == []
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        monkeypatch.setattr(sys, "argv", ["train", *argv])
        gpt_config_from_args(validate_args(parse_args(extra_args_provider=add_flagscale_args)))

    return validate


@pytest.mark.parametrize(("ranks", "short", "shown"), GOOD)
def test_layouts_that_pass_are_accepted_by_the_engine(
    engine_accepts: Callable[[dict[str, Any], int], None], ranks: int, short: dict[str, Any], shown: str
) -> None:
    keys = {SHORT.get(name, name): value for name, value in short.items()}
    engine_accepts({**TASK, **FOR_THE_ENGINE, **keys}, ranks)
