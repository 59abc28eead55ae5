"""An adapter as a training saves it is exported, and vLLM serves it with one configuration."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flagscale.node import processes
from flagscale.run.env import import_path
from flagscale_testing.adapters import make_trained
from flagscale_testing.guided import Size, make_llama
from flagscale_testing.ports import free_port
from tests.e2e.test_serve import PROMPTS, ROOT, Run, has_vllm

pytestmark = [
    pytest.mark.skipif(not has_vllm(), reason="vLLM is not installed (make test installs it)"),
    pytest.mark.timeout(900),
    pytest.mark.slow,  # test_vllm_adapters.py has the checks, test_adapters.py of the conversion the rest
]
TOKENS = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base in both formats, the checkpoint of its adapter, and what the tool exports."""
    folder = tmp_path_factory.mktemp("adapters")
    make_llama(folder / "hf", Size(vocabulary=320, hidden=128, layers=2, positions=256))
    tool("convert", "--load", folder / "hf", "--save", folder / "megatron")
    kinds = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    make_trained(folder / "megatron", folder / "trained", kinds, rank=8, alpha=16)
    tool(
        "adapter", "export", "--load", folder / "trained", "--save", folder / "peft", "--base", folder / "hf"
    )
    return folder


def tool(name: str, *words: str | Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / f"tools/checkpoint/{name}.py"), *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": import_path(str(ROOT))},
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def server(folder: Path, tmp_path: Path) -> Iterator[tuple[Run, int]]:
    port = free_port()
    keys = (
        *(f"serve.model='{folder}/hf'", f"serve.port={port}", "+serve.enable_lora=true"),
        *("+serve.max_lora_rank=8", f"+serve.lora_modules=['tuned={folder}/peft']"),
    )
    run = Run("config_serve", tmp_path / "run", keys)
    yield run, port
    processes.end(run.processes, grace=0)


def greedy(folder: Path) -> tuple[list[list[int]], list[list[int]]]:
    """Return the tokens with which transformers continues the prompts, with `peft` and without an adapter."""
    peft = pytest.importorskip("peft", reason="peft is not installed (make test installs it)")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "hf")
    base = AutoModelForCausalLM.from_pretrained(folder / "hf", dtype=torch.float32)

    def generated(model: Any) -> list[list[int]]:
        found = []
        for prompt in PROMPTS:
            ids = torch.tensor([tokenizer.encode(prompt)])
            lengths = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "eos_token_id": None}
            out = model.generate(input_ids=ids, do_sample=False, **lengths)
            found.append(out[0, ids.shape[1] :].tolist())
        return found

    without = generated(base)  # before `peft` puts the adapter into the layers of this model
    return generated(peft.PeftModel.from_pretrained(base, folder / "peft")), without


def test_a_served_adapter_answers_as_peft(server: tuple[Run, int], folder: Path) -> None:
    import openai

    expected, without = greedy(folder)
    assert all(one != other for one, other in zip(expected, without, strict=True))
    run, port = server
    started = run("run")
    assert started.returncode == 0, started.stderr
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
    assert {one.id for one in client.models.list()} == {"aquila", "tuned"}
    how = {"model": "tuned", "temperature": 0, "max_tokens": TOKENS}
    extra = {"return_token_ids": True, "ignore_eos": True}
    found = [
        client.completions.create(prompt=text, **how, extra_body=extra).choices[0].token_ids
        for text in PROMPTS
    ]
    assert found == expected
    assert run("stop").returncode == 0


def test_an_adapter_of_a_higher_rank_is_refused_before_launch(server: tuple[Run, int], folder: Path) -> None:
    run, _ = server
    refused = run("dryrun", "serve.max_lora_rank=1", "serve.enable_lora=false")
    assert refused.returncode == 2
    assert f"{folder}/peft: its rank is 8, but `max_lora_rank` is 1" in refused.stderr
    assert "`lora_modules` has no effect without `enable_lora: true`" in refused.stderr
