"""A model served by vLLM is evaluated at its endpoints: the same scores as those of its folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from flagscale.node import processes
from flagscale.run.env import import_path
from flagscale_testing.engines import ENVIRONMENT
from flagscale_testing.ports import free_port
from tests.e2e.test_serve import ROOT, Run, has_vllm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)"),
    pytest.mark.skipif(not find_spec("lm_eval"), reason="lm_eval is not installed: flagscale[evaluate]"),
    pytest.mark.timeout(3600),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from flagscale_testing.evaluated import write_model, write_tasks

    folder = tmp_path_factory.mktemp("evaluated")
    write_model(folder / "tiny")
    write_tasks(folder / "tasks")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    port = free_port()
    keys = (f"serve.model={folder}/tiny", f"serve.port={port}", "serve.max_model_len=64")
    run = Run("config_serve", folder / "server", keys)
    try:
        started = run("run")
        assert started.returncode == 0, started.stderr
        yield f"http://127.0.0.1:{port}"
    finally:
        processes.end(run.processes, grace=0)


@pytest.fixture
def samples(folder: Path, tmp_path: Path) -> Callable[..., list[Any]]:
    """Return a function that runs an evaluation and returns the model's answers, by question."""

    def samples(task: str, **keys: Any) -> list[Any]:
        evaluate = {
            **keys,
            "tasks": [task],
            "include_path": str(folder / "tasks"),
            "log_samples": True,
        }
        config = {
            "experiment": {
                "exp_name": "scores",
                "exp_dir": str(tmp_path / "run"),
                "task": {"type": "evaluate", "backend": "lm_eval"},
                "runner": {"platform": "cpu"},
                "envs": {"HF_HOME": str(tmp_path / "cache"), "VLLM_CPU_KVCACHE_SPACE": 1, **ENVIRONMENT},
            },
            "action": "test",
            "evaluate": evaluate,
        }
        (tmp_path / "scores.yaml").write_text(json.dumps(config))
        words = ("--config-path", str(tmp_path), "--config-name", "scores")
        env = {**os.environ, "PYTHONPATH": import_path(str(ROOT), os.environ.get("PYTHONPATH", ""))}
        done = subprocess.run(
            [sys.executable, str(ROOT / "run.py"), *words], capture_output=True, text=True, env=env
        )
        assert done.returncode == 0, done.stdout + done.stderr
        (found,) = (tmp_path / "run/evaluation/models").glob(f"*/{task}.jsonl")
        records = [json.loads(line) for line in found.read_text().splitlines()]
        return [one["filtered_resps"] for one in sorted(records, key=lambda one: one["doc_id"])]

    return samples


def close_to(expected: list[list[float]], found: list[Any]) -> bool:
    return [[float(pair[0]) for pair in one] for one in found] == [
        pytest.approx(one, abs=1e-3) for one in expected
    ]


def test_completions(address: str, folder: Path, samples: Callable[..., list[Any]]) -> None:
    from flagscale_testing.evaluated import reference

    expected = reference(folder / "tiny")
    args = {"base_url": f"{address}/v1/completions", "model": "aquila", "tokenizer": f"{folder}/tiny"}
    served = {"model": "local-completions", "model_args": {**args, "add_bos_token": True}}
    assert close_to(expected.choices(bos=True), samples("local_choice", **served))
    assert [one for (one,) in samples("local_answer", **served)] == expected.answers()


def test_chat_completions(address: str, folder: Path, samples: Callable[..., list[Any]]) -> None:
    from flagscale_testing.evaluated import reference

    served = {
        "model": "local-chat-completions",
        "model_args": {"base_url": f"{address}/v1/chat/completions", "model": "aquila"},
        "apply_chat_template": True,
    }
    answers = [one for (one,) in samples("local_answer", **served)]
    expected = reference(folder / "tiny")
    assert answers == expected.answers(is_chat=True)
    assert answers != expected.answers()


@pytest.mark.parametrize("is_chat", [False, True])
def test_a_folder_in_transformers(folder: Path, samples: Callable[..., list[Any]], is_chat: bool) -> None:
    from flagscale_testing.evaluated import reference

    args = {"pretrained": f"{folder}/tiny", "dtype": "float32"}
    found = samples("local_answer", model="hf", model_args=args, apply_chat_template=is_chat)
    assert [one for (one,) in found] == reference(folder / "tiny").answers(is_chat=is_chat)


def test_a_folder_in_vllm(folder: Path, samples: Callable[..., list[Any]]) -> None:
    from flagscale_testing.evaluated import reference

    expected = reference(folder / "tiny")
    args = {"pretrained": f"{folder}/tiny", "dtype": "float32", "enforce_eager": True, "max_model_len": 64}
    own = {"model": "vllm", "model_args": args}
    assert close_to(expected.choices(bos=True), samples("local_choice", **own))
    answers = [one for (one,) in samples("local_answer", **own)]
    assert answers != expected.answers(), "lm_eval 0.4.13 keeps special tokens in the answers of vLLM"
    without = {**own, "gen_kwargs": {"skip_special_tokens": True}}
    assert [one for (one,) in samples("local_answer", **without)] == expected.answers()
