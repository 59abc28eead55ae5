"""Whether vLLM accepts a length is known without it; `tests/worker/test_vllm_lengths.py` asks vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from flagscale.engines.vllm.lengths import allows_any_length, default_length, too_long
from flagscale_testing.lengths import CASES


@pytest.mark.parametrize("name", CASES)
def test_the_longest_sequence(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    for file, text in case.files.items():
        (tmp_path / file).write_text(text)

    def refused(wanted: int) -> str:
        return too_long({**case.arguments, "max_model_len": wanted, "runner": "auto"}, case.config, tmp_path)

    assert refused(case.longest) == ""
    assert f"at most {case.longest} tokens" in refused(case.longest + 1)
    assert refused(-1) == ""  # as long as memory allows


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"max_position_embeddings": 256}, "at most 256 tokens (max_position_embeddings), not 999"),
        (
            {"seq_length": 256, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
            "at most 512 tokens (seq_length, scaled by 2), not 999",
        ),
        (
            {"max_position_embeddings": 256, "rope_scaling": {"type": "yarn", "factor": 4.0}},
            "tokens (max_position_embeddings), not 999; its rotary scaling `yarn` does not extend that",
        ),
        ({"model_type": "multi", "text_config": {"max_position_embeddings": 256}}, "at most 256 tokens"),
    ],
)
def test_the_message_names_the_key(config: Mapping[str, Any], what: str, tmp_path: Path) -> None:
    assert what in too_long({"max_model_len": 999}, config, tmp_path)


@pytest.mark.parametrize(
    ("rotary", "length"),
    [
        ({}, 256),
        ({"type": "linear", "factor": 2.0}, 512),
        ({"type": "yarn", "factor": 2.0}, 256),
        ({"type": "longrope"}, None),
    ],
)
def test_the_length_if_none_is_given(rotary: Mapping[str, Any], length: int | None, tmp_path: Path) -> None:
    config = {"max_position_embeddings": 256, "rope_scaling": rotary}
    assert default_length({"max_model_len": None}, config, tmp_path) == length
    assert default_length({"max_model_len": -1}, {"rope_scaling": rotary}, tmp_path) is None


@pytest.mark.parametrize(
    "config",
    [
        {},  # code of its own, without any of the keys: vLLM accepts every length
        {"max_position_embeddings": None},
        {"max_position_embeddings": "many"},
        {"thinker_config": {"text_config": {"max_position_embeddings": 256}}},
        {"text_config": "none", "rope_scaling": [], "rope_parameters": 3},
        {"rope_parameters": {"full_attention": None}},
    ],
)
def test_what_cannot_be_told_is_accepted(config: Mapping[str, Any], tmp_path: Path) -> None:
    assert too_long({"max_model_len": 10**6}, config, tmp_path) == ""


@pytest.mark.parametrize(
    ("text", "allowed"), [("1", True), (" TRUE ", True), ("0", False), ("", False), ("yes", False)]
)
def test_the_variable_that_allows_any_length(text: str, allowed: bool) -> None:
    assert allows_any_length({"VLLM_ALLOW_LONG_MAX_MODEL_LEN": text}) == allowed
    assert not allows_any_length({})
