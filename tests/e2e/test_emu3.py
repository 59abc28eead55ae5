"""The examples of Emu3 as a user runs them, with a tiny random model: files of pictures, and answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flagscale.node import processes
from flagscale.run.rundir import RunDir
from flagscale_testing.engines import ENVIRONMENT
from tests.e2e.test_serve import has_vllm

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["a portrait of young girl.", "a shiba inu", "a portrait of young girl."]
pytestmark = [
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)"),
    pytest.mark.timeout(900),
    # An engine per test: the server's tests draw and answer in the same way, and unit tests check the files.
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emu3") / "model"
    tool = [sys.executable, str(ROOT / "tools/emu3/tiny.py"), "--output", str(folder)]
    subprocess.run(tool, check=True, capture_output=True)
    return folder


def run(name: str, model: Path, exp_dir: Path, *overrides: str) -> list[dict[str, Any]]:
    """Run an example to its end, on the tiny model; return its results."""
    words = [
        *(sys.executable, str(ROOT / "run.py"), "--config-path", str(ROOT / "examples/emu3/conf")),
        *("--config-name", name, "action=test", f"experiment.exp_dir={exp_dir}"),
        *(f"inference.llm.model={model}", "+inference.llm.dtype=float32", "+inference.llm.max_model_len=512"),
        *("+inference.llm.enforce_eager=true", "+experiment.envs.VLLM_CPU_KVCACHE_SPACE=1", *overrides),
    ]
    try:
        environment = {**os.environ, **ENVIRONMENT}
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        plan = RunDir(exp_dir).read_plan()
        processes.end(lambda: processes.of_run(plan.run_id) if plan else set(), grace=0)
    return [json.loads(line) for line in RunDir(exp_dir).results.read_text().splitlines()]


def test_pictures_are_written_with_their_seeds(model: Path, tmp_path: Path) -> None:
    from PIL import Image

    ratios = 'inference.generate.ratios=["1:1","16:9","1:1"]'
    records = run("config_gen", model, tmp_path, f"inference.generate.prompts={json.dumps(PROMPTS)}", ratios)
    assert [record["prompt"] for record in records] == PROMPTS
    assert [record["size"] for record in records] == ["56x56", "72x40", "56x56"]
    assert [[one["seed"] for one in record["pictures"]] for record in records] == [[1, 2]] * 3
    files = [[tmp_path / one["file"] for one in record["pictures"]] for record in records]
    assert {*(tmp_path / "pictures").iterdir()} == {file for each in files for file in each}
    for record, each in zip(records, files, strict=True):
        for file in each:
            with Image.open(file) as picture:
                assert (picture.format, "{}x{}".format(*picture.size)) == ("PNG", record["size"])
    first, second, again = ([file.read_bytes() for file in each] for each in files)
    assert first == again  # the same prompt, size and seeds
    assert len({*first, *second}) == 4
    assert not (tmp_path / "pictures.partial").exists()
    assert 'src="pictures/0000_0.png"' in (tmp_path / "results.html").read_text()


def test_greedy_pictures_are_those_of_transformers(model: Path, tmp_path: Path) -> None:
    import numpy as np
    from PIL import Image

    from flagscale.checks.emu3 import NEGATIVE
    from flagscale_testing.emu3_reference import Reference
    from vllm_flagscale.emu3.prompts import SUFFIX

    greedy = ("inference.generate.sampling={temperature:0,n:1}", 'inference.generate.ratios=["1:1","16:9"]')
    records = run("config_gen", model, tmp_path, *greedy)
    reference = Reference(model)
    for record, ratio in zip(records, ("1:1", "16:9"), strict=True):
        drawn = reference.draw(record["prompt"] + SUFFIX, ratio, scale=3.0, negative=NEGATIVE)
        with Image.open(tmp_path / record["pictures"][0]["file"]) as picture:
            difference = np.asarray(picture).astype(int) - drawn.picture.astype(int)
        assert abs(difference).max() <= 1


def test_questions_are_answered_as_by_transformers(model: Path, tmp_path: Path) -> None:
    from PIL import Image

    from flagscale_testing.emu3_reference import Reference
    from vllm_flagscale.emu3.prompts import question_text

    records = run("config_chat", model, tmp_path, "inference.generate.sampling.max_tokens=16")
    reference = Reference(model)
    for record in records:
        with Image.open(record["image"]) as picture:
            text = question_text(reference.processor.tokenizer, record["prompt"])
            bos = reference.processor.tokenizer.bos_token
            expected = reference.answer(text.removeprefix(bos), [picture], 16)
        assert record["outputs"][0]["token_ids"] == expected[: len(record["outputs"][0]["token_ids"])]
        assert len(record["outputs"][0]["token_ids"]) >= min(16, len(expected))
    assert "Please describe the image" in RunDir(tmp_path).results.with_suffix(".txt").read_text()
