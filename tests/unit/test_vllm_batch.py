"""Batch inference: how hosts share the prompts, and what is refused before it starts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flagscale.values import Job
from tests.unit.vllm_jobs import gpus, inference, job_of, refusal

Build = Callable[..., Job]


@pytest.fixture
def model(tmp_path: Path, write_model: Callable[..., Path]) -> str:
    return str(write_model(tmp_path / "m"))


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return partial(job_of, tmp_path)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    return partial(refusal, tmp_path)


def test_batch_inference(build: Build, model: str, tmp_path: Path) -> None:
    sampling = {"temperature": 0, "stop": ["x"]}
    keys = {"sampling": sampling, "batch_size": None, "output": None, "chat": True}
    job = build("inference", inference(model, keys, dtype="float32"))
    (service,) = job.services[0]
    assert service.url == ""
    assert service.argv == (
        *("--model", model, "--dtype", "float32", "--prompts", '["a"]'),
        *("--sampling", '{"temperature": 0, "stop": ["x"]}', "--batch-size", "256"),
        *("--output", str(tmp_path / "run" / "results.jsonl"), "--share", "0", "1", "--chat"),
    )


def test_hosts_share_the_prompts(build: Build, model: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a\nb")
    generate = {"prompts": None, "prompts_file": str(file), "output": str(tmp_path / "out.jsonl")}
    job = build("inference", inference(model, generate), gpus(1, 2))
    for rank in (0, 1):
        argv = job.services[rank][0].argv
        assert argv[-3:] == ("--share", str(rank), "2")
        assert argv[argv.index("--output") + 1] == str(tmp_path / f"out_{rank}.jsonl")
    assert job.inputs["prompts_file"] == str(file)
    assert job.notices == ("gpu-1: the engine uses 1 of its 2 devices",)


@pytest.mark.parametrize(
    ("generate", "reported"),
    [
        ({"promts": ["a"]}, "did you mean `prompts`?"),
        ({"prompts": None}, "give either `prompts` or `prompts_file`"),
        ({"prompts_file": "x"}, "give either `prompts` or `prompts_file`"),
        ({"prompts": "a"}, "a list of texts is expected here"),
        ({"prompts": ["a", 3]}, "prompt 1 is not a text: 3"),
        ({"prompts": ["a" * 200_000]}, "too long for a command line"),
        ({"prompts": None, "prompts_file": "/absent.txt"}, "/absent.txt: No such file"),
        ({"batch_size": 0}, "at least 1"),
        ({"batch_size": "x"}, "`batch_size` takes a whole number"),
        ({"chat": 1}, "`chat` takes true or false"),
        ({"output": "a.txt"}, "name a .jsonl file"),
        ({"sampling": 3}, "the fields of SamplingParams are expected here"),
        (
            {"sampling": {"temprature": 1}},
            "SamplingParams has no field `temprature`; did you mean `temperature`?",
        ),
        ({"sampling": {"temperature": "hot"}}, "`temperature` takes a number, not 'hot'"),
        ({"sampling": {"max_tokens": True}}, "`max_tokens` takes a whole number, not True"),
    ],
)
def test_wrong_requests(
    refused: Callable[..., str], model: str, generate: dict[str, Any], reported: str
) -> None:
    assert reported in refused("inference", inference(model, generate))


def test_the_values_of_the_folder_are_reported_and_checked(
    build: Build, refused: Callable[..., str], model: str
) -> None:
    file = Path(model) / "generation_config.json"
    file.write_text('{"repetition_penalty": 1.3, "temperature": 0}')
    server = build("serve", {"model": model})
    assert "sets repetition_penalty 1.3, temperature 0 for requests without values" in server.notices[0]
    batch = build("inference", inference(model, {"sampling": {"temperature": 0.5}}))
    assert "sets repetition_penalty 1.3 for all prompts" in batch.notices[0]
    assert "`temperature` 0 gives the same answer" in refused(
        "inference", inference(model, {"sampling": {"n": 2}})
    )
    file.write_text('{"temperature": 3}')
    assert "(generation_config.json); give a value here" in refused("inference", inference(model))
    assert build("inference", inference(model, {"sampling": {"temperature": 1}}))


def test_wrong_engines_for_inference(refused: Callable[..., str], model: str) -> None:
    assert "has no argument `port`" in refused("inference", inference(model, port=8000))
    assert "distributed over the hosts" in refused("inference", inference(model, data_parallel_size=2))
    assert "`nnodes` cannot be given here" in refused("inference", inference(model, nnodes=2))
    assert "api_key" in refused("inference", inference(model, api_key="k"))
    assert "need 2 devices, but localhost has 1" in refused(
        "inference", inference(model, tensor_parallel_size=2)
    )
    assert "this section is required" in refused("inference", {"llm": {"model": model}})
    assert "unknown key `lm`" in refused("inference", {**inference(model), "lm": {}})
