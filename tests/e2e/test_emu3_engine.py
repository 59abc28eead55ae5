"""Emu3 in the engine against transformers, greedy and in float32: pictures, their pixels, and answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flagscale.run.env import import_path
from flagscale_testing.engines import ENVIRONMENT
from tests.e2e.test_serve import has_vllm

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("emu3_engine.py")
FAST = [{"num_gpu_blocks_override": 20, "block_size": 32}]
"""Few blocks, so that requests are preempted."""
SLOW = [
    {"async_scheduling": False},
    {"enable_prefix_caching": False, "max_num_seqs": 2},
    {"max_num_batched_tokens": 96, "max_num_seqs": 5, "disable_chunked_mm_input": False},
    {"num_gpu_blocks_override": 18, "block_size": 32, "async_scheduling": False},
    {"max_num_seqs": 3, "enable_chunked_prefill": False},
]
pytestmark = [
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)"),
    pytest.mark.timeout(900),
    pytest.mark.slow,  # the server's tests compare the same pictures, pixels, answers and seeds
]


def run(folder: Path, settings: list[dict[str, Any]]) -> Any:
    """Return what the program prints."""
    engine = {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), json.dumps(settings)],
        env={**os.environ, **engine, "PYTHONPATH": import_path(str(ROOT))},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run(tmp_path_factory.mktemp("emu3") / "model", FAST)


@pytest.fixture(scope="module")
def engine(made: Any) -> Any:
    return made["engines"][0]


def test_pictures_are_those_of_transformers(engine: Any) -> None:
    assert engine["prompts"] == [True] * 5
    assert engine["drawn"] == [True] * 5
    assert engine["reasons"][:5] == ["stop"] * 5
    assert engine["preemptions"] > 0


def test_pixels_are_those_of_transformers(engine: Any) -> None:
    shapes, differences = zip(*engine["pixels"], strict=True)
    assert shapes == ([56, 56, 3], [40, 72, 3], [64, 48, 3], [96, 32, 3], [72, 40, 3])
    # Both cut floats down to whole numbers: what differs in the last bits may differ by one then.
    assert max(differences) <= 1


def test_answers_are_those_of_transformers(engine: Any) -> None:
    assert engine["answers"] == [True] * 2


def test_the_engine_puts_no_bos_before_a_text_with_a_picture(engine: Any) -> None:
    """It is why `question_text` does. If this fails, vLLM has changed: then leave it to vLLM."""
    assert engine["lost without BOS"] == 1
    assert engine["differs without BOS"]


def test_pictures_of_a_seed_are_the_same_alone_and_in_company(engine: Any) -> None:
    assert engine["seeds"] == [True, 3]
    assert engine["left"] == 0


def test_tokens_that_are_no_picture_are_not_decoded(engine: Any) -> None:
    assert engine["refused"] == [
        "a picture of 7 x 7 codes has 59 tokens, not 58",
        "token 1 is not a code of a picture",
    ]


def test_prompts_that_would_spoil_a_picture_are_refused(made: Any) -> None:
    empty, negative, special, code, long, suffix, half, question, placeholder = made["facts"]["refused"]
    assert empty == "the prompt is empty"
    assert negative == "the negative prompt is empty"
    assert special == "the prompt contains the special token <|image start|>"
    assert code == "the negative prompt contains the special token <|visual token 000001|>"
    assert long.startswith("a picture of 56x56 pixels takes 59 tokens, and with ")
    assert long.endswith("; shorten the prompt")
    assert suffix == "the suffix of the prompt contains the special token <image>"
    assert half == "the prompt contains half of a surrogate pair at character 2"
    assert question == "the question is empty"
    assert placeholder == "the question contains the special token <image>"


def test_our_rules_are_those_of_transformers(made: Any) -> None:
    rules = {name: fact for name, fact in made["facts"].items() if name != "refused"}
    assert rules == {
        "ratios round alike": True,
        "default positions": True,
        "default codes": 32768,
        "default levels": 4,
        "chats alike": True,
        "BOS of a template with BOS": 2,  # so that a folder's template must not have it
        # Its tokens of a small picture depend on the larger ones beside it; the engine's do not.
        "pads to the largest": [[2, 3, 64, 80], [1, 3, 64, 48]],
    }


def test_every_setting_of_the_engine_gives_the_same(tmp_path: Path) -> None:
    for settings, engine in zip(SLOW, run(tmp_path / "model", SLOW)["engines"], strict=True):
        assert engine["drawn"] == [True] * 5, settings
        assert engine["answers"] == [True] * 2, settings
        assert engine["seeds"] == [True, 3], settings
        assert engine["left"] == 0, settings
