"""Sampling values of a model's folder, and of the arguments that replace them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flagscale.engines.vllm.catalog import vllm_catalog
from flagscale.engines.vllm.generation import generation_remarks, generation_values, generation_violations

DEFAULTS = {option.dest: option.default for option in vllm_catalog().server.options.values()}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    values = {
        "repetition_penalty": 1.3,
        "temperature": 0.6,
        "top_p": 1.0,
        "max_new_tokens": 40,
        "top_k": None,
    }
    (tmp_path / "generation_config.json").write_text(json.dumps({**values, "eos_token_id": [1, 2]}))
    return str(tmp_path)


def test_the_values_of_the_folder_apply_unless_an_argument_or_the_user_says_otherwise(folder: str) -> None:
    values = {**DEFAULTS, "model": folder}
    taken = {"repetition_penalty": 1.3, "temperature": 0.6, "top_p": 1.0, "max_tokens": 40}
    assert generation_values(values) == taken
    override = {**values, "override_generation_config": '{"temperature":0.9,"min_p":0.1}'}
    assert generation_values(override) == {**taken, "temperature": 0.9, "min_p": 0.1}
    assert generation_values({**values, "generation_config": "vllm"}) == {}
    assert generation_values({**DEFAULTS, "model": "hub/name", "generation_config": folder}) == taken
    ((dest, server),) = generation_remarks(values)
    shown = "repetition_penalty 1.3, temperature 0.6, max_tokens 40 (chats) for requests without values"
    assert (dest, shown in server, "`generation_config: vllm` turns this off" in server) == (
        "model",
        True,
        True,
    )
    ((_, batch),) = generation_remarks(values, {"temperature": 0, "max_tokens": None})
    assert "sets repetition_penalty 1.3, max_tokens 40 for all prompts" in batch
    assert [*generation_remarks({**values, "generation_config": "vllm"})] == []
    ((_, other),) = generation_remarks({**override, "model": "hub/name", "generation_config": folder})
    assert f"generation_config.json of {folder} sets repetition_penalty 1.3, max_tokens 40" in other


def test_values_of_the_folder_that_vllm_refuses_are_reported(tmp_path: Path, folder: str) -> None:
    (tmp_path / "generation_config.json").write_text('{"temperature": 3, "max_new_tokens": true}')
    values = {**DEFAULTS, "model": folder}
    assert [*generation_violations(values)] == []  # requests may have values of their own
    _, *wrong = [what for _, what in generation_remarks(values)]
    assert wrong == [
        "`temperature` is 3; it must be at least 0 and at most 2 (its generation_config.json): "
        "vLLM will refuse requests without a value of their own",
        "`max_tokens` takes a whole number, not True (its generation_config.json): "
        "vLLM will refuse requests without a value of their own",
    ]


def test_an_override_that_would_refuse_requests_is_refused() -> None:
    given = {"model": "hub/name", "override_generation_config": '{"top_p":0,"max_new_tokens":"x"}'}
    found = [*generation_violations({**DEFAULTS, **given})]
    assert {dest for dest, _ in found} == {"override_generation_config"}
    assert [what.partition(": vLLM")[0] for _, what in found] == [
        "`top_p` is 0; it must be more than 0 and at most 1",
        "`max_new_tokens` takes a whole number, not 'x'",
    ]


def test_a_missing_generation_config_is_refused(tmp_path: Path) -> None:
    for source, count in (("./absent", 1), (str(tmp_path), 1), ("vllm", 0), ("auto", 0), ("hub/name", 0)):
        found = [*generation_violations({**DEFAULTS, "model": "hub/name", "generation_config": source})]
        assert len(found) == count, source


@pytest.mark.parametrize("text", ["{", "", "[1]", "null"])
def test_a_generation_config_that_cannot_be_read_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "generation_config.json").write_text(text)
    of_model, of_folder = {"model": str(tmp_path)}, {"model": "hub/name", "generation_config": str(tmp_path)}
    for given, blamed in ((of_model, "model"), (of_folder, "generation_config")):
        ((dest, what),) = generation_violations({**DEFAULTS, **given})
        assert dest == blamed
        assert what.startswith(f"{tmp_path}/generation_config.json: ")
        assert "vLLM would not take its sampling values and the tokens that end answers" in what


def test_a_folder_with_other_tokens_that_end_answers_is_reported(tmp_path: Path, folder: str) -> None:
    (tmp_path / "other").mkdir()
    other = tmp_path / "other/generation_config.json"
    values = {**DEFAULTS, "model": folder, "generation_config": str(other.parent)}
    for ends, count in (({}, 1), ({"eos_token_id": 2}, 1), ({"eos_token_id": [1, 2]}, 0)):
        other.write_text(json.dumps(ends))
        found = [*generation_remarks(values)]
        assert len(found) == count
    other.write_text("{}")
    ((dest, what),) = generation_remarks(values)
    assert dest == "generation_config"
    assert what.endswith("those of this folder (without `eos_token_id`), not the model's [1, 2]")


def test_notices_leave_out_values_without_effect(tmp_path: Path) -> None:
    neutral = {"top_k": -1, "top_p": 1.0, "temperature": 1, "repetition_penalty": 1, "min_p": 0}
    (tmp_path / "generation_config.json").write_text(json.dumps(neutral))
    assert [*generation_remarks({**DEFAULTS, "model": str(tmp_path)})] == []
