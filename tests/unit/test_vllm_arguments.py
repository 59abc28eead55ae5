"""How the values of vLLM's arguments are read: sizes with units, and JSON."""

from __future__ import annotations

import pytest

from flagscale.config.engine_args import FlatKey, render
from flagscale.config.source_map import SourceMap
from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.errors import Problem


@pytest.mark.parametrize(
    ("text", "value"),
    [("1k", 1000), ("1K", 1024), ("1.5k", 1500), ("2T", 2 << 40), (" 8k ", 8000), ("auto", -1)],
)
def test_a_size_with_a_unit(text: str, value: int) -> None:
    problems: list[Problem] = []
    catalog = vllm_catalog().server
    arguments = render([FlatKey("max_model_len", text, "x")], catalog, SourceMap(), problems)
    assert (problems, arguments.values["max_model_len"]) == ([], value)


@pytest.mark.parametrize("text", ["1.5K", "1e3", 1.5, 1e3, "1 k", "8kb", "-8k", "", "1" * 400 + "k"])
def test_a_size_that_the_engine_refuses(text: object) -> None:
    problems: list[Problem] = []
    render([FlatKey("max_model_len", text, "x")], vllm_catalog().server, SourceMap(), problems)
    assert "takes a whole number, with or without a unit" in problems[0].what


@pytest.mark.parametrize(
    ("key", "text", "is_valid"),
    [
        ("kv_transfer_config", '{"kv_connector_extra_config": {"cpu_bytes": 80m}}', True),
        ("kv_transfer_config", '{"kv_connector_extra_config": {"cpu_bytes": 1.5K}}', False),
        ("hf_overrides", "{max_position_embeddings: 512}", False),
        ("additional_config", "any text", True),
    ],
)
def test_json_with_units(key: str, text: str, is_valid: bool) -> None:
    problems: list[Problem] = []
    render([FlatKey(key, text, "x")], vllm_catalog().server, SourceMap(), problems)
    assert (problems == []) == is_valid
    assert is_valid or f"`{key}` takes a mapping or a list (JSON)" in problems[0].what
