"""The precision in which vLLM computes is known without it; `tests/worker/test_vllm_lengths.py` asks vLLM."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flagscale.engines.vllm.precision import is_pooling, lowered_precision, precision_of
from flagscale_testing.precisions import CASES


@pytest.mark.parametrize("name", CASES)
def test_the_precision(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    if case.codes:
        write_codes(tmp_path / "model.safetensors", case.codes)
    assert precision_of(case.config, tmp_path) == case.own
    pools = is_pooling(case.config, case.runner)
    what = lowered_precision("auto", case.config, tmp_path, on_host=True, pools=pools)
    assert (f"the model is {case.own}, but vLLM computes in {case.auto} by default" in what) == (
        case.own != case.auto
    )
    assert lowered_precision("float32", case.config, tmp_path, on_host=True) == ""


def write_codes(path: Path, codes: tuple[str, ...]) -> None:
    """Write a safetensors file with an empty tensor of each precision."""
    header = {code: {"dtype": code, "shape": [0], "data_offsets": [0, 0]} for code in codes}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)


@pytest.mark.parametrize(
    ("config", "own"),
    [
        ({"text_config": {"dtype": "float16"}}, "float16"),
        ({"vision_config": {"torch_dtype": "bfloat16"}}, "bfloat16"),
        ({"dtype": "float32", "text_config": {"dtype": "float16"}}, "float32"),
    ],
)
def test_the_precision_of_a_part(config: dict[str, object], own: str, tmp_path: Path) -> None:
    assert precision_of(config, tmp_path) == own


def test_a_damaged_file_is_reported_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    assert lowered_precision("auto", {}, tmp_path, on_host=True) == ""
